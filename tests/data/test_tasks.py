"""Tasks: prompts by hand, seqio's own pipeline, local files, TFDS with its rows replaced."""

import json

import pytest

from gkd.data import pipeline, sources, tasks
from gkd.vocabularies import vocabularies
from gkd.vocabularies.tensorflow_host import seqio, tf
from tests.data.small_texts import BYTES, TEMPLATES

SMALL = vocabularies.arithmetic()  # has no line breaks, as T5's


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def texts(task, split="train"):
    data = pipeline.tokenized_split(task, split, texts=True)
    return list(zip(data.columns["inputs"].texts, data.columns["targets"].texts, strict=True))


def test_prefixes_and_one_line(write):
    path = write("a.jsonl", [{"document": "One\n two.\t", "summary": " 2\r\n"}])
    task = tasks.summarization(files={"train": path}, vocabulary=SMALL)
    assert texts(task) == [("summarize: One two.", "2")]
    task = tasks.summarization(files={"train": path}, vocabulary=BYTES)
    assert texts(task) == [("summarize: One\n two.\t", " 2\r\n")]
    path = write("b.jsonl", [{"en": "Go.", "de": "Geh."}])
    task = tasks.translation(files={"train": path}, vocabulary=BYTES)
    assert texts(task) == [("translate English to German: Go.", "Geh.")]
    path = write("c.jsonl", [{"input": "a", "target": "b"}])
    task = tasks.local_text({"train": path}, vocabulary=BYTES, prefix="say: ")
    assert texts(task) == [("say: a", "b")]


def test_an_empty_text_is_noticed_behind_its_prefix(write):
    path = write("a.jsonl", [{"q": x, "a": y} for x, y in [("", "1"), ("1", "\n"), ("1", "2")]])
    files = {"train": path}
    prefixed = tasks.summarization(files=files, vocabulary=BYTES, input_field="q", target_field="a")
    prompted = tasks.gsm8k_cot(files=files, vocabulary=BYTES, question_field="q", answer_field="a")
    for task in (prefixed, prompted):
        assert pipeline.tokenized_split(task, "train").empty.tolist() == [True, True, False]


def test_chain_of_thought(write):
    answer = "He has 48/2 = <<48/2=24>>24.\nThen 24+1 = <<24+1=25>>25.\n#### 25"
    path = write("a.jsonl", [{"question": "How\nmany?", "answer": answer}])
    files = {"train": path}
    kept = tasks.gsm8k_cot(files=files, vocabulary=BYTES, shots=0)
    assert texts(kept) == [
        (
            "Q: How\nmany? A: Let's think step by step.",
            "He has 48/2 = 24.\nThen 24+1 = 25.\n#### 25",
        )
    ]
    plain = tasks.gsm8k_cot(files=files, vocabulary=SMALL, shots=0)
    assert texts(plain) == [
        (
            "Q: How many? A: Let's think step by step.",
            "He has 48/2 = 24. Then 24+1 = 25. #### 25",
        )
    ]
    for shots in (1, 4):
        task = tasks.gsm8k_cot(files=files, vocabulary=SMALL, shots=shots)
        ((prompt, _),) = texts(task)
        parts = prompt.split("Q: ")
        assert len(parts) == shots + 2
        assert parts[1].startswith("A shelf holds 3 boxes")
        assert parts[1].endswith("24 - 5 = 19 pens left. #### 19 ")
        assert parts[-1] == "How many? A: Let's think step by step."
    with pytest.raises(ValueError, match="shots=5 is not in 0 … 4"):
        tasks.gsm8k_cot(files=files, vocabulary=BYTES, shots=5)


def test_answer_apart_from_the_rationale(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("Why?\\nNow\t7\tBecause 3 + 4 = 7.\nNo rationale\t7\t\n")
    task = tasks.gsm8k_cot(
        files={"train": str(path)},
        tsv=tasks.TsvFormat(columns=("question", "answer", "rationale"), escapes=True),
        rationale_field="rationale",
        shots=0,
        vocabulary=BYTES,
    )
    assert texts(task)[0] == (
        "Q: Why?\nNow A: Let's think step by step.",
        "Because 3 + 4 = 7. #### 7",
    )
    data = pipeline.tokenized_split(task, "train")
    assert data.empty.tolist() == [False, True]


def test_instructions_take_one_template_a_row(write):
    rows = [{"question": f"q{i}\n", "answer": f"a{i}", "why": f"w {i}"} for i in range(40)]
    rows.append({"question": "any", "answer": "any", "why": " "})
    path = write("a.jsonl", rows)

    def built(lines):
        path = write("a.jsonl", lines)
        task = tasks.instructions(TEMPLATES, files={"train": path}, vocabulary=SMALL)
        return pipeline.tokenized_split(task, "train", texts=True)

    def possible(i):
        return (f"Q: q{i}", f"w {i} So a{i}."), (f"q{i} Why?", f"w {i}"), ("Say {it}.", f"a{i}")

    data = built(rows)
    found = list(zip(data.columns["inputs"].texts, data.columns["targets"].texts, strict=True))
    used = [possible(i).index(row) for i, row in enumerate(found[:40])]
    assert min(used.count(which) for which in range(3)) >= 5
    assert data.empty.tolist() == [False] * 40 + [True]
    # A row keeps its template wherever it stands.
    again = built(rows[::-1])
    assert (
        list(zip(again.columns["inputs"].texts, again.columns["targets"].texts, strict=True))[::-1]
        == found
    )
    fixed = tasks.instructions([("Guess.", "{answer}")], files={"train": path}, vocabulary=BYTES)
    assert set(texts(fixed)) == {("Guess.", row["answer"]) for row in rows}
    # Row by row, as seqio reads, gives the same texts as block by block.
    task = tasks.instructions(TEMPLATES, files={"train": path}, vocabulary=SMALL)
    single = task.task.source.get_dataset("train", shuffle=False).map(task.texts)
    assert [row["inputs"].decode() for row in single.as_numpy_iterator()] == list(
        again.columns["inputs"].texts
    )
    # A vocabulary with line breaks changes the texts, not the choice of their templates.
    kept = tasks.instructions(TEMPLATES, files={"train": path}, vocabulary=BYTES)
    for (source, target), (other_source, other) in zip(texts(kept)[:-1], texts(task), strict=False):
        assert (source.replace("\n", ""), target.split()) == (other_source, other.split())


def test_tasks_and_mixtures_of_seqio(write):
    files = {"train": write("a.jsonl", [{"input": f"i{n}", "target": f"t{n}"} for n in range(6)])}
    own = tasks.local_text(files, name="theirs", vocabulary=BYTES)
    seqio.MixtureRegistry.remove("their_mixture")
    seqio.MixtureRegistry.add("their_mixture", [("theirs", 1)])
    for provider in ("theirs", "their_mixture"):
        task = tasks.from_seqio(provider, vocabulary=BYTES)
        assert task.name == f"{provider}_texts"
        assert texts(task) == [(f"i{n}", f"t{n}") for n in range(6)]
        assert len(texts(tasks.from_seqio(provider, vocabulary=BYTES, max_examples=2))) == 2
    assert seqio.TaskRegistry.get("theirs") is own.task
    with pytest.raises(ValueError, match="seqio has no task or mixture 'flan_zsopt'"):
        tasks.from_seqio("flan_zsopt", vocabulary=BYTES)
    with pytest.raises(ValueError, match="would replace the one it reads"):
        tasks.from_seqio("theirs", name="theirs", vocabulary=BYTES)


def test_arithmetic_needs_no_file():
    task = tasks.arithmetic(rows={"train": 30, "validation": 5}, steps=2, solution="totals")
    assert task.splits == ("train", "validation")
    rows = texts(task)
    assert len(rows) == 30
    assert all(target.count(" ") == 3 for _, target in rows)
    few = tasks.arithmetic(rows={"train": 30}, steps=2, solution="totals", max_examples=4)
    assert texts(few) == rows[:4]


@pytest.mark.parametrize("kind", ["arithmetic", "gsm8k", "bytes"])
def test_tokens_are_those_of_seqios_own_pipeline(kind, shared, monkeypatch):
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    files = {"train": str(shared / "data/gsm8k/test.jsonl[:40]")}
    task = {
        "arithmetic": lambda: tasks.arithmetic(rows={"train": 40}),
        "gsm8k": lambda: tasks.gsm8k_cot(files=files, shots=2),
        "bytes": lambda: tasks.gsm8k_cot(files=files, shots=0, vocabulary=BYTES),
    }[kind]()
    data = pipeline.tokenized_split(task, "train")
    dataset = seqio.get_dataset(
        task.name,
        task_feature_lengths={"inputs": 4000, "targets": 4000},
        feature_converter=seqio.PassThroughFeatureConverter(),
        dataset_split="train",
        shuffle=False,
    )
    rows = list(dataset.as_numpy_iterator())
    assert len(rows) == data.rows == 40
    for i, row in enumerate(rows):
        inputs = data.columns["inputs"].tokens[
            data.columns["inputs"].offsets[i] : data.columns["inputs"].offsets[i + 1]
        ]
        targets = data.columns["targets"].tokens[
            data.columns["targets"].offsets[i] : data.columns["targets"].offsets[i + 1]
        ]
        assert inputs.tolist() == row["inputs"].tolist()
        assert targets.tolist() == row["targets"].tolist()
        assert inputs[-1] == targets[-1] == 1


def test_building_a_task_again_is_harmless_and_changes_no_earlier_one():
    first = tasks.arithmetic(rows={"train": 10}, steps=1)
    second = tasks.arithmetic(rows={"train": 10}, steps=3)
    assert seqio.TaskRegistry.get("arithmetic") is second.task
    assert texts(first)[0][0].count(",") == 1
    assert texts(second)[0][0].count(",") == 3


def test_bad_settings_are_one_line():
    with pytest.raises(ValueError, match="max_examples=0"):
        tasks.summarization(vocabulary=BYTES, max_examples=0)
    with pytest.raises(ValueError, match="max_examples=0"):
        tasks.arithmetic(max_examples=0)
    with pytest.raises(ValueError, match="files is empty"):
        tasks.local_text({}, vocabulary=BYTES)


TFDS_ROWS = {
    "xsum": {"document": ["Long\ntext.", "More."], "summary": ["Short.", "Less."]},
    "wmt14_translate": {"de": ["Ein Haus.", "Zwei."], "en": ["A house.", "Two."]},
    "gsm8k": {"question": ["1+1?", "2+2?"], "answer": ["<<1+1=2>>2\n#### 2", "#### 4"]},
}


@pytest.mark.parametrize(
    ("build", "name", "split", "expected"),
    [
        (tasks.summarization, "xsum", "validation", ("summarize: Long text.", "Short.")),
        (
            tasks.translation,
            "wmt14_translate",
            "test",
            ("translate English to German: A house.", "Ein Haus."),
        ),
        (tasks.gsm8k_cot, "gsm8k", "train", ("Q: 1+1? A: Let's think step by step.", "2 #### 2")),
    ],
)
def test_tfds_tasks(build, name, split, expected, monkeypatch):
    """The real builders and their splits, with the rows that TFDS would read replaced."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(sources, "check_available", lambda name: None)
    asked = []

    def rows(self, split=None, **_):
        asked.append((self.name, str(split)))
        return tf.data.Dataset.from_tensor_slices(TFDS_ROWS[self.name])

    with tfds.testing.mock_data(as_dataset_fn=rows):
        task = build(vocabulary=SMALL)
        data = texts(task, split)
        few = texts(build(vocabulary=SMALL, max_examples=1), split)
    assert len(data) == 2
    prompt, target = data[0]
    assert prompt.endswith(expected[0])
    assert target == expected[1]
    assert len(few) == (1 if split == "train" else 2)
    assert asked[0] == (name, {"gsm8k": "train[:-500]"}.get(name, split))


def test_absent_tfds_data_is_one_line(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise AssertionError("Dataset xsum: could not find data\nsecond line")

    monkeypatch.setattr(seqio.TfdsDataSource, "get_dataset", refuse)
    monkeypatch.setattr(sources, "check_available", lambda name: None)
    task = tasks.summarization(vocabulary=BYTES)
    with pytest.raises(
        FileNotFoundError, match="TFDS has no xsum:1.1.0 here .*`tfds build xsum`"
    ) as e:
        texts(task)
    assert "\n" not in str(e.value)

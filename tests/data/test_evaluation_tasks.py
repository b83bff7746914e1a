"""Few-shot prompts against the papers' wording by hand, and the real files' facts."""

import gzip
import json

import pytest

from gkd.data import evaluation_tasks, few_shot, pipeline
from gkd.vocabularies import vocabularies
from tests.vocabularies.tokenizer_folders import byte_bpe

BYTES = vocabularies.byte_level()
SMALL = vocabularies.arithmetic()  # has no line breaks, as T5's


def texts(task, split="test"):
    data = pipeline.tokenized_split(task, split, texts=True)
    return list(zip(data.columns["inputs"].texts, data.columns["targets"].texts, strict=True))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data directory with one small benchmark of each kind."""
    monkeypatch.setenv("GKD_DATA", str(tmp_path))

    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def mmlu_row(subject, question, answer):
        choices = [f"{question}{i}" for i in range(4)]
        return {"subject": subject, "question": question, "choices": choices, "answer": answer}

    write("dev.jsonl", [mmlu_row("high_art", f"d{i}", str(i)) for i in range(3)])
    write("mmlu.jsonl", [mmlu_row("high_art", f"q{i}\n", "3") for i in range(4)])
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "navigate.txt").write_text(
        "CANARY\n-----\nDo you\nreturn?\n\nQ: Left.\nOptions:\n- Yes\n- No\nA: Let's think step by"
        " step.\nIt goes. So the answer is not yet clear.\nSo the answer is No.\n\nQ: Stay.\n"
        "Options:\n- Yes\n- No\nA: Let's think step by step.\nSo the answer is Yes.\n"
    )
    (tmp_path / "prompts" / "word_sorting.txt").write_text(
        "Sort.\n\nQ: b a\nA: Let's think step by step.\nSo the answer is a b.\n"
        "\nQ: d c\nA: Let's think step by step.\nSo the answer is c d."
    )
    question = "Turn.\nOptions:\n- Yes\n- No "
    write(
        "bbh.jsonl",
        [
            {"task": "navigate", "input": question, "target": "No"},
            {"task": "word_sorting", "input": "f e", "target": "e f"},
        ],
    )
    (tmp_path / "en.tsv").write_text("How  many?\t1,200\nMore?\t7\n")
    (tmp_path / "de.tsv").write_text("Wie viele?\t12\n")
    pairs = {
        "en": [{"q": "Question: Two?", "a": "Step-by-Step Answer: 1 + 1 = 2. The answer is 2."}],
        "de": [{"q": "Frage: Zwei?", "a": "Schritt-für-Schritt-Antwort: Die Antwort ist 2."}],
    }
    (tmp_path / "shots.json").write_text(json.dumps(pairs))
    return tmp_path


def mmlu(vocabulary=SMALL, **settings):
    files = {"test": "mmlu.jsonl"}
    return evaluation_tasks.mmlu(
        files, "dev.jsonl", vocabulary=vocabulary, **{"shots": 2, **settings}
    )


def bbh(vocabulary=SMALL, **settings):
    files = {"test": "bbh.jsonl"}
    return evaluation_tasks.bbh(files, "prompts", vocabulary=vocabulary, **{"shots": 2, **settings})


def mgsm(vocabulary=SMALL, **settings):
    files = {"test": {"en": "en.tsv", "de": "de.tsv"}}
    return evaluation_tasks.mgsm(
        files, "shots.json", vocabulary=vocabulary, **{"shots": 1, **settings}
    )


def test_mmlu_prompt(folder):
    prompt, target = texts(mmlu())[0]
    assert prompt == (
        "The following are multiple choice questions (with answers) about high art. "
        "d0 A. d00 B. d01 C. d02 D. d03 Answer: A d1 A. d10 B. d11 C. d12 D. d13 Answer: B "
        "q0 A. q0 0 B. q0 1 C. q0 2 D. q0 3 Answer:"
    )
    assert target == "D"
    ((kept, _), *_) = texts(mmlu(BYTES, shots=1))
    assert kept == (  # as Hendrycks et al. have it
        "The following are multiple choice questions (with answers) about high art.\n\n"
        "d0\nA. d00\nB. d01\nC. d02\nD. d03\nAnswer: A\n\n"
        "q0\nA. q0\n0\nB. q0\n1\nC. q0\n2\nD. q0\n3\nAnswer:"
    )


def test_mmlu_options_and_parts(folder):
    task = mmlu()
    rows = texts(task)
    assert task.choices(*rows[0]) == (("A", "B", "C", "D"), 3)
    inputs, targets = zip(*rows, strict=True)
    assert task.evaluate(targets, ["D", "A", "(d)", "?"], inputs) == {
        "accuracy": 50.0, "high_art/accuracy": 50.0, "macro_accuracy": 50.0,
    }  # fmt: skip
    assert mmlu(scoring="generation").choices is None
    assert task.evaluate_samples(["D"], [["D", "A", "D."]])["maj@3"] == 100.0


def test_a_prompt_that_is_too_long_loses_its_last_examples(folder):
    ((whole, _), *_) = texts(mmlu(BYTES))
    ((shorter, _), *_) = texts(mmlu(BYTES, shots=1))
    ((shortest, _), *_) = texts(mmlu(BYTES, shots=0))
    for limit, expected in [
        (len(whole) + 3, whole),  # bytes, EOS, and the two newlines counted after the last part
        (len(whole) + 2, shorter),
        (len(shorter) + 3, shorter),
        (len(shorter) + 2, shortest),
        (5, shortest),
    ]:
        assert texts(mmlu(BYTES, input_length=limit))[0][0] == expected


def test_bbh_prompts(folder):
    rows = dict(texts(bbh()))
    assert rows == {
        "Do you return? Q: Left. Options: - Yes - No A: No Q: Stay. Options: - Yes - No A: Yes "
        "Q: Turn. Options: - Yes - No A:": "No",
        "Sort. Q: b a A: a b Q: d c A: c d Q: f e A:": "e f",
    }
    kept = dict(texts(bbh(BYTES, chain_of_thought=True, shots=1)))
    assert [prompt for prompt in kept if "Sort" in prompt] == [
        "Sort.\n\nQ: b a\nA: Let's think step by step.\nSo the answer is a b.\n\nQ: f e\n"
        "A: Let's think step by step."
    ]
    thinking = dict(texts(bbh(chain_of_thought=True, shots=1)))
    assert thinking == {
        "Do you return? Q: Left. Options: - Yes - No A: Let's think step by step. It goes. So the "
        "answer is not yet clear. So the answer is No. Q: Turn. Options: - Yes - No A: Let's think "
        "step by step.": "No",
        "Sort. Q: b a A: Let's think step by step. So the answer is a b. Q: f e A: Let's think "
        "step by step.": "e f",
    }


def test_bbh_options(folder):
    task = bbh(scoring="options")
    ((prompt, target),) = texts(task)  # sorting has no options
    assert task.choices(prompt, target) == (("Yes", "No"), 1)
    assert task.choices(prompt, "Perhaps") == (("Yes", "No"), -1)
    with pytest.raises(ValueError, match="has no row"):
        task.choices("else", target)
    listed = "Which?\nOptions:\n(A) one (B)\n- or\n(B) two"
    assert few_shot.bbh_options("snarks", listed) == ("(A)", "(B)")
    assert few_shot.bbh_options("web_of_lies", "Does he?") == ("Yes", "No")
    assert few_shot.bbh_options("object_counting", "How many?") == ()


def test_mgsm_prompts_and_votes(folder):
    task = mgsm()
    rows = texts(task)
    assert set(rows) == {
        (
            "Question: Two? Step-by-Step Answer: 1 + 1 = 2. The answer is 2. "
            "Question: How many? Step-by-Step Answer:",
            "1,200",
        ),
        (
            "Question: Two? Step-by-Step Answer: 1 + 1 = 2. The answer is 2. "
            "Question: More? Step-by-Step Answer:",
            "7",
        ),
        (
            "Frage: Zwei? Schritt-für-Schritt-Antwort: Die Antwort ist 2. "
            "Frage: Wie viele? Schritt-für-Schritt-Antwort:",
            "12",
        ),
    }
    assert (
        "Frage: Zwei?\nSchritt-für-Schritt-Antwort: Die Antwort ist 2.\n\n"
        "Frage: Wie viele?\nSchritt-für-Schritt-Antwort:",
        "12",
    ) in texts(mgsm(BYTES))
    inputs, targets = zip(*rows, strict=True)
    predictions = ["The answer is 1200." if target == "1,200" else "5" for target in targets]
    scores = task.evaluate(targets, predictions, inputs)
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert (scores["en/exact_match"], scores["de/exact_match"]) == (50.0, 0.0)
    assert scores["macro_exact_match"] == 25.0
    # The calculator mends what is voted on, never the reference.
    wrong = "6 + 1 = 8. The answer is 8."
    assert task.evaluate_samples(["7"], [[wrong, "5", wrong]])["maj@3"] == 100.0
    assert task.evaluate_samples([wrong], [["7", "7"]])["maj@2"] == 0.0


def test_groups_are_spread_and_examples_chosen(folder):
    rows = [
        {"task": task, "input": f"x{i}", "target": "y"}
        for task, count in (("navigate", 2), ("word_sorting", 4))
        for i in range(count)
    ]
    (folder / "bbh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    starts = [prompt[:2] for prompt, _ in texts(bbh())]
    assert starts == ["So", "Do", "So", "So", "Do", "So"]
    assert len(texts(bbh(max_examples=3))) == 3


def test_bad_benchmarks_are_one_line(folder):
    def refused(match, build, *args, **settings):
        with pytest.raises((ValueError, FileNotFoundError), match=match) as error:
            texts(build(*args, **settings))
        assert "\n" not in str(error.value)

    refused("scoring='rank' is not one of options, generation", mmlu, scoring="rank")
    refused("max_examples=0", mmlu, max_examples=0)
    refused(r"shots=4 is not in 0 … 3, the exemplars of high_art", mmlu, shots=4)
    refused("shots=-1", bbh, shots=-1)
    refused("without a chain of thought", bbh, scoring="options", chain_of_thought=True)
    (folder / "dev.jsonl").write_text((folder / "dev.jsonl").read_text().replace("high", "low"))
    refused("dev.jsonl have none of 'high_art'; low_art", mmlu)
    for answer in ("4", "-1", "D", "²"):
        row = {"subject": "low_art", "question": "q", "choices": list("abcd"), "answer": answer}
        (folder / "mmlu.jsonl").write_text(json.dumps(row))
        refused("is no index of the 4 choices", mmlu)
    row["choices"] = "abcd"
    (folder / "mmlu.jsonl").write_text(json.dumps(row))
    refused("field 'choices' is str, needs a list of texts", mmlu)
    for task, match in (("../prompts/navigate", "holds more than"), ("unknown", "does not exist")):
        (folder / "bbh.jsonl").write_text(json.dumps({"task": task, "input": "", "target": ""}))
        refused(match, bbh)
    (folder / "prompts" / "unknown.txt").write_text("Do.\n\nQ: a\nA: Let's think.\nIt is b.")
    refused("'a' has no `So the answer is` at its end", bbh)
    for text in ("[]", "{", '{"en": []}', '{"en": [{"q": "a"}]}'):
        (folder / "shots.json").write_text(text)
        refused("not MGSM's exemplars", mgsm)


def test_real_bbh_prompts_and_options(shared):
    folder = shared / "data" / "bbh"
    for path in (folder / "cot-prompts").glob("*.txt"):
        for chain_of_thought in (False, True):
            made = few_shot.bbh_exemplars(path.read_text(), chain_of_thought)
            assert len(made.examples) == 3
            assert "canary" not in made.description
            assert all(len(e) > 150 or not chain_of_thought for e in made.examples)
    with gzip.open(folder / "bbh.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    free, odd = set(), []
    for row in rows:
        options = few_shot.bbh_options(row["task"], row["input"])
        free |= set() if options else {row["task"]}
        if options and row["target"] not in options:
            odd.append(row["target"])
    assert free == {
        "dyck_languages", "multistep_arithmetic_two", "object_counting", "word_sorting",
    }  # fmt: skip
    # Three rows of the published data are broken: their options were split at the commas.
    assert sorted(odd) == ["Monsters, Inc", "dearth, wind, & fire", "rita, sue and bob poo"]


def test_real_mgsm_exemplars(shared):
    text = (shared / "data/mgsm_en_de/cot_exemplars_en_de.json").read_text()
    german = few_shot.mgsm_exemplars(text)["de"]
    assert len(german.examples) == 8
    assert (german.before, german.after) == ("Frage:", "Schritt-für-Schritt-Antwort:")


@pytest.mark.parametrize(
    "make, target, text, metric",
    [
        (bbh, "True", " True\n\nQ: not ( True ) is\nA: False", "exact_match"),
        (bbh, "True", " True\nQ: not ( True ) is\nA: False", "exact_match"),
        (mmlu, "B", " B\n\nWhich?\nA. x\nB. y\nAnswer: C", "accuracy"),
        (mmlu, "B", "I think.\n\nA is wrong.\nAnswer: B", "accuracy"),
        (mgsm, "11", " The answer is 11.\n\nQuestion: More? The answer is 7.", "exact_match"),
        (mgsm, "11", " Die Antwort ist 11.\n\nFrage: Mehr? Die Antwort ist 7.", "exact_match"),
        (mgsm, "11", "First.\n\nThen.\n\nThe answer is 11.", "exact_match"),
    ],
)
def test_a_base_models_next_question_is_no_part_of_its_answer(folder, make, target, text, metric):
    task = make(BYTES, **({"scoring": "generation"} if make is mmlu else {}))
    assert task.evaluate([target], [text])[metric] == 100.0
    assert task.evaluate_samples([target], [[text, text]])["pass@1"] == 100.0


def test_line_breaks_count_as_they_are_within_a_prompt(folder, tmp_path):
    """GPT-2's rule takes two line breaks as one text at the end, and as two before a word."""
    path = tmp_path / "tokenizer"
    byte_bpe(path)
    raw = json.loads((path / "tokenizer.json").read_text())
    raw["model"]["vocab"]["ĊĊ"] = 256  # and the special tokens after it
    raw["model"]["merges"] = ["Ċ Ċ"]
    raw["added_tokens"] = [{**each, "id": each["id"] + 1} for each in raw["added_tokens"]]
    (path / "tokenizer.json").write_text(json.dumps(raw))
    vocabulary = vocabularies.from_folder(str(path))
    assert [len(vocabulary.encode(text)) for text in ("a\n\n", "a\n\nQ")] == [2, 4]
    ((whole, _), *_) = texts(mmlu(vocabulary))
    length = len(vocabulary.encode(whole))
    for room in range(length - 2, length + 4):
        ((prompt, _), *_) = texts(mmlu(vocabulary, input_length=room))
        assert len(vocabulary.encode(prompt)) <= room and "d0" in prompt
    assert prompt == whole and "d1" in whole

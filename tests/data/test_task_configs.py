"""Every file in configs/tasks parses and builds its task; the real files are read unchanged."""

import pathlib

import gin
import pytest

from gkd.data import pipeline
from gkd.metrics import reward_functions

CONFIGS = pathlib.Path(__file__).parents[2] / "configs" / "tasks"
BENCHMARKS = ("bbh", "mgsm", "mmlu")  # they only evaluate
MACROS = ("TASK", "INPUT_LENGTH", "TARGET_LENGTH", "BEST_METRIC")


@pytest.fixture
def read(shared, monkeypatch):
    """Function of a config's name and overrides to its four macros."""
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    monkeypatch.setenv("GKD_DATA", str(shared / "data"))

    def read(name, *overrides):
        gin.clear_config()
        gin.parse_config_files_and_bindings([str(CONFIGS / f"{name}.gin")], list(overrides))
        values = []
        for macro in MACROS:
            with gin.config_scope(macro):
                values.append(gin.get_configurable("gin.macro")())
        return values

    yield read
    gin.clear_config()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.gin")), ids=lambda path: path.stem)
def test_every_config_builds(read, path):
    files = ["FILES = {'train': 'quickstart/gsm8k.train.jsonl'}"]
    task, input_length, target_length, best = read(
        path.stem, *(files if path.stem == "local_text" else [])
    )
    assert task.name == path.stem
    assert task.splits == ("test",) if path.stem in BENCHMARKS else "train" in task.splits
    assert input_length >= 24
    assert target_length >= (4 if path.stem in ("mmlu", "retrieval_teacher_inputs") else 24)
    assert best in task.evaluate(["#### 1 a b c"], ["#### 1 a b c"])


@pytest.mark.parametrize(
    ("name", "rows", "inputs_cut", "targets_cut"),
    [
        ("tatoeba_en_de", (48486, 1279, 1000), 0.0, 0.0),
        ("debian_synopsis", (33007, 691, 1312), 0.05, 0.0),
        ("gsm8k_local", (6973, 500, 1319), 0.03, 0.05),
    ],
)
def test_real_files(read, name, rows, inputs_cut, targets_cut):
    task, input_length, target_length, _ = read(name)
    for split, count in zip(("train", "validation", "test"), rows, strict=True):
        if split == "test" and name != "gsm8k_local":
            continue  # one long enough file each is enough
        data = pipeline.tokenized_split(task, split)
        assert data.rows == count
        assert (data.columns["inputs"].lengths > input_length).mean() <= inputs_cut
        assert (data.columns["targets"].lengths > target_length).mean() <= targets_cut
        assert not data.empty.any()
        unknown = (data.columns["targets"].tokens == 2).mean()
        assert unknown < 0.002  # 2% if calculator notes and newlines had stayed


def test_tfds_configs_read_local_files_by_a_setting(read):
    files = "{'train': 'quickstart/summarize.train.jsonl'}"
    task, *_ = read("xsum", f"FILES = {files}", "INPUT_FIELD = 'input'", "TARGET_FIELD = 'target'")
    assert pipeline.tokenized_split(task, "train").rows == 256
    files = "{'train': 'gsm8k/test.jsonl'}"
    task, length, *_ = read("gsm8k_cot", f"FILES = {files}", "MAX_EXAMPLES = 100")
    data = pipeline.tokenized_split(task, "train", texts=True)
    assert data.rows == 100
    assert all(text.count("Q: ") == 5 for text in data.columns["inputs"].texts)
    assert data.columns["inputs"].lengths.max() <= length
    files = "FILES = {'validation': 'tatoeba_en_de/val.jsonl'}"
    task, *_ = read("wmt14_en_de", files)
    assert task.splits == ("validation",)
    assert task.tokenize is None
    task, *_ = read("wmt14_en_de", files, "TOKENIZE = 'char'")
    assert task.tokenize == "char"
    # 2 of 3 characters, where 1 of 2 words would be right.
    reward = gin.get_configurable(reward_functions.rouge)([""], ["ab c"], ["ab d"], name="rouge1")
    assert reward == pytest.approx([2 / 3])
    assert (
        gin.query_parameter("reward_functions.bleu.tokenize").scoped_selector
        == "TOKENIZE/gin.macro"
    )


@pytest.mark.parametrize(
    ("solution", "digits", "longest"),
    [
        ("equations", 1, (21, 42)),
        ("totals", 1, (21, 15)),
        ("equations", 2, (27, 58)),
        ("totals", 2, (27, 21)),
    ],
)
def test_arithmetic_lengths_are_those_the_config_states(read, solution, digits, longest):
    task, input_length, target_length, _ = read(
        "arithmetic", f"SOLUTION = '{solution}'", f"DIGITS = {digits}", "ROWS = {'train': 3000}"
    )
    data = pipeline.tokenized_split(task, "train")
    found = (
        data.columns["inputs"].lengths.max(),
        data.columns["targets"].lengths.max(),
    )
    assert found[0] <= longest[0]
    assert found[1] <= longest[1]
    if (solution, digits) == ("equations", 1):
        assert longest <= (input_length, target_length)


@pytest.mark.parametrize(
    ("name", "rows", "parts"),
    [("mmlu", 600, 57), ("bbh", 600, 27), ("mgsm", 500, 2)],
)
def test_benchmarks_of_real_files(read, name, rows, parts):
    # All of MMLU would take 20 seconds.
    task, input_length, target_length, best = read(name, "MAX_EXAMPLES = 600")
    data = pipeline.tokenized_split(task, "test", texts=True)
    assert data.rows == rows
    assert data.columns["inputs"].lengths.max() <= input_length
    assert name == "mgsm" or data.columns["targets"].lengths.max() <= target_length
    assert not data.empty.any()
    perfect = task.evaluate(
        data.columns["targets"].texts, data.columns["targets"].texts, data.columns["inputs"].texts
    )
    assert sum(key.endswith(f"/{best}") for key in perfect) == parts
    # Three of BBH's targets are no option, but still match themselves.
    assert perfect[best] == perfect[f"macro_{best}"] == 100.0
    if name == "mmlu":
        for row in zip(
            data.columns["inputs"].texts[:50], data.columns["targets"].texts, strict=False
        ):
            options, right = task.choices(*row)
            assert options[right] == row[1]


def test_flan_mixes_four_sets_up_to_the_cap(read):
    task, input_length, target_length, _ = read("flan")
    data = pipeline.tokenized_split(task, "train", texts=True)
    # 7273, 2528, 884 and 1861 rows; the first count as 3000 of 8273, and each comes once.
    assert data.rows == -(-7273 * 8273 // 3000)
    assert (data.columns["targets"].lengths > target_length).mean() < 0.001
    assert data.columns["inputs"].lengths.max() <= input_length
    assert pipeline.tokenized_split(task, "validation").rows == 800
    assert set(task.components) == {"flan_gsm8k", "flan_aqua", "flan_qasc", "flan_strategyqa"}
    direct = sum(text.endswith(" A:") for text in data.columns["inputs"].texts) / data.rows
    assert 0.2 < direct < 0.3  # one of four templates

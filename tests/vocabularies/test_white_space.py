"""The rule for line breaks and indentation: by vocabulary, and the same for training and infer."""

import json

import pytest

from gkd.data import pipeline, tasks
from gkd.infer.generator import encode_inputs, encode_targets
from gkd.vocabularies import vocabularies
from gkd.vocabularies.white_space import ONE_LINE, WhiteSpaceRule, rule_of
from tests.vocabularies.tokenizer_folders import folder_of, token

CODE = " def f(x):\r\n\treturn  x\n\n    \v\f# é\u00a0end \n"
BYTES = vocabularies.byte_level()


@pytest.fixture(scope="module")
def t5(shared):
    return vocabularies.t5(str(shared / "data/t5_vocab/spiece.model"))


def test_bytes_keep_everything():
    rule = rule_of(BYTES)
    assert rule == WhiteSpaceRule("\t\n\f\r", runs=True) and not rule.one_line
    assert rule.fit(CODE) == CODE == rule.fit_tensor(CODE)


def test_t5_has_one_line(t5):
    assert rule_of(t5) == rule_of(vocabularies.arithmetic()) == ONE_LINE
    assert ONE_LINE.fit(CODE) == "def f(x): return x \v # é\u00a0end"
    assert ONE_LINE.fit_tensor(CODE).numpy().decode() == ONE_LINE.fit(CODE)
    assert ONE_LINE.fit("\n \t") == "" == ONE_LINE.fit_tensor("\n \t").numpy().decode()


def test_an_added_newline_is_kept(shared, tmp_path):
    pieces = shared / "data/t5_vocab/spiece.model"
    rule = rule_of(vocabularies.t5(folder_of(tmp_path, pieces, [token("\n")])))
    assert rule == WhiteSpaceRule("\n", runs=False)
    assert (
        rule.fit("a\n\tb\r\n c") == "a\n b \n c" == rule.fit_tensor("a\n\tb\r\n c").numpy().decode()
    )


@pytest.mark.parametrize("kind", ["bytes", "pieces", "pieces and a newline"])
def test_training_and_infer_see_the_same_tokens(kind, t5, shared, tmp_path):
    vocabulary = {"bytes": BYTES, "pieces": t5}.get(kind)
    if vocabulary is None:
        pieces = shared / "data/t5_vocab/spiece.model"
        vocabulary = vocabularies.t5(folder_of(tmp_path, pieces, [token("\n")]))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": CODE, "target": f"1\n{CODE}"}))
    task = tasks.local_text({"train": str(path)}, vocabulary=vocabulary, prefix="run:\n")
    data = pipeline.tokenized_split(task, "train", texts=True)
    rule = rule_of(vocabulary)  # as gkd.infer.requests
    inputs, _ = encode_inputs(vocabulary, [rule.fit("run:\n" + CODE)], 999)
    targets, _ = encode_targets(vocabulary, [rule.fit(f"1\n{CODE}")], 999)
    assert (data.columns["inputs"].tokens.tolist(), data.columns["targets"].tokens.tolist()) == (
        inputs[0],
        targets[0],
    )
    if kind == "bytes":
        assert data.columns["inputs"].tokens.tolist() == [
            b + 3 for b in f"run:\n{CODE}".encode()
        ] + [1]
        assert data.columns["targets"].texts == (f"1\n{CODE}",)

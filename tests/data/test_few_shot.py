"""Few-shot prompts worked out by hand."""

import pytest

from gkd.data import few_shot
from gkd.data.few_shot import Exemplars

ROW = {"subject": "high_school_physics", "question": " Why? ", "choices": ["a", "b"], "answer": "1"}


def test_mmlu_as_hendrycks_et_al_write_it():
    assert few_shot.mmlu_question(ROW) == "Why?\nA. a\nB. b"
    assert few_shot.mmlu_answer(ROW) == "B"
    exemplars = few_shot.mmlu_exemplars([ROW])["high_school_physics"]
    prompt = few_shot.fitted_prompt(exemplars, few_shot.mmlu_question(ROW), 1, None, len, str)
    assert prompt == (
        "The following are multiple choice questions (with answers) about high school physics."
        "\n\nWhy?\nA. a\nB. b\nAnswer: B\n\nWhy?\nA. a\nB. b\nAnswer:"
    )
    with pytest.raises(ValueError, match="'2' is no index of the 2 choices"):
        few_shot.mmlu_answer({**ROW, "answer": "2"})


@pytest.mark.parametrize(("room", "kept"), [(None, 2), (16, 2), (15, 1), (11, 1), (10, 0), (3, 0)])
def test_a_prompt_loses_its_last_examples_first(room, kept):
    """Lengths: description 3, examples 4 and 5, question 3, end of sequence 1."""
    exemplars = Exemplars("ddd", ("aaaa", "bbbbb"), before="", after="")
    prompt = few_shot.fitted_prompt(exemplars, "qqq", 2, room, len, str)
    assert prompt == few_shot.SEPARATOR.join(["ddd", *("aaaa", "bbbbb")[:kept], "qqq"])


def test_bbh_examples_with_and_without_their_reasoning():
    text = "canary\n-----\nTask.\n\nQ: 1?\nA: Let's think. So the answer is no. So the answer is 2."
    with_reasons = few_shot.bbh_exemplars(text, True)
    assert few_shot.bbh_exemplars(text, False).examples == ("Q: 1?\nA: 2",)
    assert with_reasons.examples[0].endswith("So the answer is 2.")
    assert with_reasons.after == "A: Let's think step by step."
    assert few_shot.bbh_options("web_of_lies", "Does he lie?") == ("Yes", "No")
    assert few_shot.bbh_options("any", "Q?\nOptions:\n(A) x\n(B) y") == ("(A)", "(B)")
    assert few_shot.bbh_options("any", "Q?\nOptions:\n- valid\n- invalid") == ("valid", "invalid")

"""Prompts: chains of thought and instruction templates."""

import pytest

from gkd.data import prompts, tasks
from gkd.metrics.calculator import apply_calculator, final_number
from gkd.vocabularies import vocabularies
from tests.data.small_texts import BYTES, TEMPLATES


def test_exemplars_are_right_and_safe_for_t5(shared):
    t5 = vocabularies.t5(str(shared / "data/t5_vocab/spiece.model"))
    for question, solution, answer in prompts.EXEMPLARS:
        worked = f"{solution} #### {answer}"
        corrected, computed = apply_calculator(worked)
        assert corrected == worked
        assert len(computed) >= 2
        assert final_number(worked, calculator=True) == int(answer)
        assert 2 not in t5.encode(f"Q: {question} A: {worked}")


def test_bad_templates_are_one_line():
    for templates, match in [
        ([], "name no field"),
        ([("a", "b")], "name no field"),
        (["ab"], "not a pair"),
        ([("{a}",)], "not a pair"),
        ([("{a", "b")], "template '{a': expected '}'"),
        ([("{}", "b")], "'' is not the name of a field"),
        ([("{a.b}", "b")], "'a.b' is not the name"),
        ([("{a!r}", "b")], "'a' is not the name"),
    ]:
        with pytest.raises(ValueError, match=match):
            prompts.instructions(templates)
    with pytest.raises(ValueError, match="give `files`, or `tfds`"):
        tasks.instructions(TEMPLATES, vocabulary=BYTES)

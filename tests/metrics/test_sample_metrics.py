"""Metrics over several samples per prompt: hand counts, and BLEU's formula written out."""

import math

import pytest
import sacrebleu

from gkd.metrics import sample_metrics
from gkd.metrics.calculator import final_number


def test_majority_by_hand():
    targets = ["#### 4", "#### 5", "#### 6", "#### 7"]
    samples = [
        ["#### 3", "it is 4", "#### 4.0"],  # two for 4, written in two ways
        ["5", "9", "nothing"],  # a tie: the first seen
        ["9", "6", "nothing"],  # a tie again, the first seen is wrong
        ["no", "number", "here"],  # nobody votes
    ]
    assert sample_metrics.majority(targets, samples, final_number) == {"maj@3": 50.0}
    # Silence is no answer: three that say nothing do not outvote one that does.
    assert sample_metrics.most_common([None, None, 1]) == 1
    assert sample_metrics.most_common([2, 1, 1, 2]) == 2
    assert sample_metrics.most_common([None]) is None


def test_majority_finds_the_references_answer_in_its_own_way():
    reading = {"answer_of": len, "reference_answer_of": int}
    assert sample_metrics.majority(["3"], [["abc", "de", "xyz"]], **reading) == {"maj@3": 100.0}
    assert sample_metrics.majority(["1"], [["abc", "x"]], len) == {"maj@2": 0.0}


def test_self_bleu_by_hand():
    # "a b c d e" against "a b c d f": n-gram precisions 4/5, 3/4, 2/3, 1/2, in both directions.
    pair = (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    same = ["a b c d e"] * 2
    scores = sample_metrics.self_bleu([["a b c d e", "a b c d f"], same])
    assert scores == {"self_bleu": pytest.approx(100 * (pair + 1) / 2)}


def test_self_bleu_takes_all_others_as_references():
    # x: 4 of 4 words, 3 of 3 pairs, … in the union of both others; length 4, closest reference 4.
    x, y, z = "a b c d", "a b c e", "b c d f"
    # x: 4/4; 3/3 (ab bc | bc cd); 2/2 (abc | bcd); no abcd: half a count of 1 (exponential).
    of_x = (1 * 1 * 1 * 0.5) ** 0.25
    # y: a b c of 4; ab bc of 3; abc of 2; none of 1. z likewise with bcd.
    of_y = of_z = (3 / 4 * 2 / 3 * 1 / 2 * 0.5) ** 0.25
    scores = sample_metrics.self_bleu([[x, y, z]])
    assert scores["self_bleu"] == pytest.approx(100 * (of_x + of_y + of_z) / 3)


def test_self_bleu_of_repeated_short_and_empty_samples():
    row = ["yes", "yes", "no", "", "yes no"]
    scorer = sacrebleu.BLEU(effective_order=True)
    one_by_one = [
        scorer.sentence_score(text, row[:i] + row[i + 1 :]).score for i, text in enumerate(row)
    ]
    assert one_by_one[0] == pytest.approx(100)  # a short text's own copy
    assert one_by_one[3] == 0
    found = sample_metrics.self_bleu([row])["self_bleu"]
    assert found == pytest.approx(math.fsum(one_by_one) / 5)
    assert sample_metrics.self_bleu_signature().startswith(
        "nrefs:k-1|case:mixed|eff:yes|tok:13a|smooth:exp"
    )


def test_distinct_by_hand():
    # Words: a b a | a b: 2 of 5. Pairs: ab ba | ab: 2 of 3. The second prompt has no pair.
    samples = [["a b a", "a b"], ["x", "X"], ["", " "]]
    scores = sample_metrics.distinct(samples)
    assert scores["distinct_1"] == pytest.approx(100 * (2 / 5 + 1) / 2)
    assert scores["distinct_2"] == pytest.approx(100 * 2 / 3)
    assert sample_metrics.distinct([[""]]) == {
        "distinct_1": 0.0, "distinct_2": 0.0, "distinct_samples": 100.0,
    }  # fmt: skip


def test_bad_samples_are_refused():
    for samples in ([], [[]], [["a"], ["a", "b"]]):
        with pytest.raises(ValueError, match="equally many"):
            sample_metrics.distinct(samples)
        with pytest.raises(ValueError, match="equally many"):
            sample_metrics.self_bleu(samples)
        with pytest.raises(ValueError, match="equally many"):
            sample_metrics.majority(["a"] * len(samples), samples, len)
    with pytest.raises(ValueError, match="two or more"):
        sample_metrics.self_bleu([["a"]])
    with pytest.raises(ValueError, match="samples of 1 prompts for 2 targets"):
        sample_metrics.majority(["a", "b"], [["a"]], len)


def test_a_majority_is_right_by_any_reference():
    samples = [["4", "5", "4"], ["1", "7", "1"]]
    assert sample_metrics.majority([["5", "4"], "7"], samples, str.strip) == {"maj@3": 50.0}
    assert sample_metrics.majority([["5", "6"], ["7", "8"]], samples, str.strip) == {"maj@3": 0.0}


def test_pass_at_k_is_the_share_of_draws_with_a_right_sample():
    # 2 of 5 right: of the 10 pairs 3 have none right, of the 5 fours none; and a prompt without.
    samples = [["1", "x", "1", "2", "3"], ["2", "2", "3", "4", "5"]]
    found = sample_metrics.pass_at(["1", "1"], samples, str.strip)
    wanted = {"pass@1": 20, "pass@2": 35, "pass@4": 50, "pass@5": 50}
    assert found == pytest.approx(wanted)
    assert sample_metrics.pass_at([["7", "1"]], [["1"]], str.strip) == {"pass@1": 100}


def test_distinct_samples_are_the_share_of_different_texts():
    samples = [["a", "a", "b", "a"], ["a", "b", "c", "d"]]
    assert sample_metrics.distinct(samples)["distinct_samples"] == 100 * 6 / 8

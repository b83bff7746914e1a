"""Metrics against hand-counted n-grams, sacreBLEU's command and hand-solved answers."""

import math
import subprocess
import sys

import pytest
import sacrebleu
from rouge_score import rouge_scorer

from gkd.metrics import metrics, word_tokens


def test_rouge_by_hand():
    # Stemmed: the/cat/sit/on/the/mat against the/cat/sat/on/the/mat: 5 of 6 words, 3 of 5 pairs.
    scores = metrics.rouge(["The cat sat on the mat."], ["the cats sitting on the mat"])
    assert scores["rouge1"] == pytest.approx(100 * 5 / 6)
    assert scores["rouge2"] == pytest.approx(100 * 3 / 5)
    assert scores["rouge_l"] == pytest.approx(100 * 5 / 6)


def test_rouge_is_f1_and_averages_examples():
    # Precision 1, recall 1/2: F1 2/3. The longest common subsequence of "b a" and "a b" is 1 of 2.
    scores = metrics.rouge(["red fish blue bird", "dog cat"], ["red fish", "cat dog"])
    assert scores["rouge1"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert scores["rouge_l"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 2)
    assert scores["rouge2"] == pytest.approx(100 * (2 * 1 * (1 / 3) / (4 / 3) + 0) / 2)


def test_bleu_by_hand():
    # 4-, 3-, 2- and 1-gram precision 1 and a length of 4 for 6: only the brevity penalty is left.
    scores = metrics.bleu(["the cat is on the mat"], ["the cat is on"])
    assert scores["bleu"] == pytest.approx(100 * math.exp(1 - 6 / 4))
    # 1-grams 5/6, 2-grams 4/5, 3-grams 3/4, 4-grams 2/3.
    scores = metrics.bleu(["a b c d e f"], ["a b c d e g"])
    assert scores["bleu"] == pytest.approx(100 * (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)


def test_bleu_is_what_the_sacrebleu_command_prints(tmp_path):
    targets = ["Zwei Katzen schlafen auf dem Sofa.", "Es regnet heute, sagt er."]
    predictions = ["Zwei Katzen liegen auf dem Sofa.", "Heute regnet es, sagt er."]
    (tmp_path / "reference").write_text("\n".join(targets) + "\n")
    (tmp_path / "system").write_text("\n".join(predictions) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "reference", "-i", "system", "-w", "6"]
    score = subprocess.run([*command, "-b"], capture_output=True, text=True, cwd=tmp_path)
    assert metrics.bleu(targets, predictions)["bleu"] == pytest.approx(
        float(score.stdout), abs=1e-6
    )
    report = subprocess.run([*command, "-f", "text"], capture_output=True, text=True, cwd=tmp_path)
    assert metrics.bleu_signature() in report.stdout
    assert metrics.bleu_signature().startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")


SEVERAL = [
    ["the cat sat on the mat", "a cat was sitting there on the mat"],
    "two dogs run in the park",
    ("no match at all", "it rains", "it is raining here today and tomorrow"),
]
WRITTEN = ["a cat sat on the mat", "two dogs are in a park", "it is raining today and tomorrow"]


def test_rouge_of_several_references_is_the_best_one():
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    lists = [[row] if isinstance(row, str) else list(row) for row in SEVERAL]
    scores = [scorer.score_multi(*pair) for pair in zip(lists, WRITTEN, strict=True)]
    with word_tokens.collected_signatures() as signatures:
        found = metrics.rouge(SEVERAL, WRITTEN)
    for name, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[name] == pytest.approx(
            100 * sum(score[theirs].fmeasure for score in scores) / 3
        )
        firsts = metrics.rouge([row[0] for row in lists], WRITTEN)[name]
        assert found[name] > firsts + 5
    assert [s.endswith("best of several references") for s in signatures["rouge"]] == [True, False]


def test_bleu_of_several_references_is_sacrebleus():
    columns = [
        ["the cat sat on the mat", "two dogs run in the park", "no match at all"],
        ["a cat was sitting there on the mat", None, "it rains"],
        [None, None, "it is raining here today and tomorrow"],
    ]
    wanted = sacrebleu.corpus_bleu(WRITTEN, columns).score
    with word_tokens.collected_signatures() as signatures:
        assert metrics.bleu(SEVERAL, WRITTEN)["bleu"] == pytest.approx(wanted, abs=1e-9)
    assert signatures["bleu"][0].startswith("nrefs:var|")
    assert wanted > metrics.bleu(columns[0], WRITTEN)["bleu"] + 5


def test_an_answer_that_equals_any_reference_is_right():
    targets = [["yes", "of course"], "no", ["Maybe.", "no"], ["yes"]]
    assert metrics.exact_match(targets, ["Of course", "yes", "maybe", "no"]) == {"exact_match": 50}
    assert metrics.answer_match([["so", "the answer is B"]], ["(b)"]) == {"exact_match": 100}
    assert metrics.multiple_choice([["A", "C"], ["A", "C"]], ["C", "B"]) == {"accuracy": 50}
    numbers = [["#### 3", "#### 4"], ["#### 7", "none"]]
    assert metrics.final_answer(numbers, ["1 + 3 = 5", "2 + 5 = 7"]) == {
        "exact_match": 50,
        "exact_match_calculator": 100,
    }


def test_final_answer_with_and_without_calculator():
    targets = ["#### 11", "#### 1,000", "#### 9", "4 + 5 = 9 #### 9"]
    predictions = ["7 + 4 = 12 #### 12", "it is 1000.00", "no idea", "#### 9"]
    scores = metrics.final_answer(targets, predictions)
    assert scores == {"exact_match": 50.0, "exact_match_calculator": 75.0}


def test_a_reference_without_a_number_is_never_met():
    assert metrics.final_answer(["none"], ["none"])["exact_match"] == 0


@pytest.mark.parametrize("metric",
    [metrics.rouge, metrics.bleu, metrics.final_answer, metrics.exact_match, metrics.answer_match,
     metrics.multiple_choice],
)  # fmt: skip
@pytest.mark.parametrize(("targets", "predictions"), [([], []), (["a"], ["a", "b"])])
def test_unequal_or_no_texts_are_refused(metric, targets, predictions):
    with pytest.raises(ValueError, match="predictions for"):
        metric(targets, predictions)


def test_normalised_exact_match():
    targets = ["The  Cat", "] } >", "an answer", "12", "a. b."]
    predictions = ["the cat.", "] } >", "answer", "12.", "A.  B"]
    assert metrics.exact_match(targets, predictions) == {"exact_match": 80.0}
    assert metrics.normalised(" One\n TWO .") == "one two"
    assert metrics.normalised("Straße...") == "strasse.."  # one full stop, not all


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("False", "false"),
        ("Z = False. So the answer is False.", "false"),
        ("The answer is 3? No, the answer is: 4.", "4"),
        ("Die Antwort lautet 29.", "29"),
        ("So the answer is ] } ].", "] } ]"),
        ("So the answering is off", "so the answering is off"),
    ],
)
def test_stated_answer(text, answer):
    assert metrics.stated_answer(text) == answer
    assert metrics.answer_match([answer, "else"], [text, text]) == {"exact_match": 50.0}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), ("(b)", "B"), (" B. Both", "B"), ("C) no", "C"), ("(D) It's (A)", "D"),
        ("(A) is wrong, so the answer is (C).", "C"), ("I", "I"), ("A's", None), ("a-b", None),
        ("Both", None), ("", None), ("7", None), ("The answer is", None),
    ],
)  # fmt: skip
def test_chosen_letter(text, letter):
    assert metrics.chosen_letter(text) == letter


def test_multiple_choice():
    predictions = ["A", "(b) yes", "the answer is D", "none"]
    assert metrics.multiple_choice(["A", "(B)", "C", "D"], predictions) == {"accuracy": 50.0}
    assert metrics.multiple_choice(["Monsters, Inc"], ["?"]) == {"accuracy": 0.0}  # no letter

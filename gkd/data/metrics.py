"""Metrics of generated text, in percent, with seqio's signature (targets, predictions) -> dict."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

import sacrebleu

from gkd.data import calculator

_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
_ANSWER_IS = re.compile(r"\b(?:the answer is|die antwort (?:ist|lautet))\b:?", re.IGNORECASE)
_LETTER = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Za-z])(?![\w'’-]))")


def _check(targets: Sequence[str], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions) or not targets:
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets: give one each, one or more"
        )


@functools.cache
def _rouge_scorer() -> Any:
    from rouge_score import rouge_scorer  # brings scipy.stats: seconds of every start

    return rouge_scorer.RougeScorer(list(_ROUGE), use_stemmer=True)


def rouge(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 over examples, with Porter stemming.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as the package rouge-score
    computes it. ROUGE-L takes each text as one sentence.

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.

    Returns:
      rouge1, rouge2, rouge_l in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    _check(targets, predictions)
    sums = dict.fromkeys(_ROUGE.values(), 0.0)
    for target, prediction in zip(targets, predictions, strict=True):
        scores = _rouge_scorer().score(target, prediction)
        for measure, name in _ROUGE.items():
            sums[name] += scores[measure].fmeasure
    return {name: 100 * total / len(targets) for name, total in sums.items()}


def bleu(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU as sacreBLEU's default computes it; `bleu_signature` says how.

    Papineni et al. (2002); Post, "A Call for Clarity in Reporting BLEU Scores" (2018).

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.

    Returns:
      bleu in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    _check(targets, predictions)
    return {"bleu": sacrebleu.BLEU().corpus_score(list(predictions), [list(targets)]).score}


def bleu_signature() -> str:
    """sacreBLEU's signature of `bleu`, to be printed with a score."""
    scorer = sacrebleu.BLEU()
    scorer.corpus_score(["a"], [["a"]])  # the signature wants to know the number of references
    return str(scorer.get_signature())


def final_answer(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """How often the final number is right, as generated and after a calculator.

    Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021) for the calculator, which
    here corrects the finished text: see `calculator.apply_calculator` and `final_number`.

    Args:
      targets: reference solutions; the answer is found in the same way, without the calculator.
      predictions: generated solutions, in the same order.

    Returns:
      exact_match and exact_match_calculator in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    _check(targets, predictions)
    plain = calculated = 0
    for target, prediction in zip(targets, predictions, strict=True):
        answer = calculator.final_number(target)
        if answer is None:
            continue  # a reference without a number cannot be met
        plain += calculator.final_number(prediction) == answer
        calculated += calculator.final_number(prediction, calculator=True) == answer
    return {
        "exact_match": 100 * plain / len(targets),
        "exact_match_calculator": 100 * calculated / len(targets),
    }


def normalised(text: str) -> str:
    """The form in which exact match compares texts.

    Case-folded, runs of white space as one space, none at the ends, and one full stop at the end
    dropped. Punctuation and articles stay: an answer may consist of brackets.

    Args:
      text: any text.
    """
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def stated_answer(text: str) -> str:
    """What a text says its answer is, normalised: all after its last `the answer is`.

    German's `die Antwort ist` and `die Antwort lautet` count too. A text without such words is an
    answer as a whole.

    Args:
      text: a generated text, or a reference.
    """
    return normalised(_ANSWER_IS.split(text)[-1])


def chosen_letter(text: str) -> str | None:
    """The option a text chooses: `B`, `(b)`, `B. Both`, `… so the answer is (B).` all give B.

    It is the letter that the text, or the part after its last `the answer is`, begins with; it
    stands in parentheses or is a word of its own.

    Args:
      text: a generated text, or a reference.

    Returns:
      A capital letter, or None where the text does not begin with an option.
    """
    match = _LETTER.match(_ANSWER_IS.split(text)[-1])
    return (match.group(1) or match.group(2)).upper() if match else None


def exact_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """How often the whole text is the reference, compared as `normalised`.

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.

    Returns:
      exact_match in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    return {"exact_match": _share_equal(normalised, targets, predictions)}


def answer_match(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """How often the stated answer is the reference's, see `stated_answer`.

    Suzgun et al., "Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them" (2022)
    extract answers after the same words; on answers without a chain of thought it is `exact_match`.

    Args:
      targets: reference texts, each an answer or a solution that states it.
      predictions: generated texts, in the same order.

    Returns:
      exact_match in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    return {"exact_match": _share_equal(stated_answer, targets, predictions)}


def multiple_choice(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """How often the chosen option is the right one, see `chosen_letter`.

    Args:
      targets: the right options' letters, `B` or `(B)`.
      predictions: generated texts, or the options of highest likelihood, in the same order.

    Returns:
      accuracy in 0 … 100.

    Raises:
      ValueError: if there are no texts, or not as many of one as of the other.
    """
    return {"accuracy": _share_equal(chosen_letter, targets, predictions)}


def _share_equal(answer_of: Any, targets: Sequence[str], predictions: Sequence[str]) -> float:
    """Percentage of rows whose answers are equal; a reference without one cannot be met."""
    _check(targets, predictions)
    right = 0
    for target, prediction in zip(targets, predictions, strict=True):
        answer = answer_of(target)
        right += answer is not None and answer_of(prediction) == answer
    return 100 * right / len(targets)

"""Computes metrics of generated text in percent: (targets, predictions) -> dict, as in seqio.

A target is a text, or several references of a row: ROUGE takes the best of them, BLEU counts the
n-grams of all, and an answer is right that equals any.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import types
from collections.abc import Sequence
from typing import Any

import sacrebleu

from gkd.metrics import answers, calculator, word_tokens
from gkd.metrics.answers import Reference, chosen_letter, normalised, references_in, stated_answer

_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}  # rouge-score's -> gkd's
ROUGE_NAMES = tuple(_ROUGE.values())


def _check(targets: Sequence[Reference], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions) or not targets:
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets: give one each, one or more"
        )


def _all_references(targets: Sequence[Reference]) -> list[str]:
    return [reference for target in targets for reference in references_in(target)]


@functools.cache
def _rouge_scorer(measures: tuple[str, ...], stemmer: bool, name: str | None) -> Any:
    from rouge_score import rouge_scorer  # brings scipy.stats: seconds of every start

    words = name and types.SimpleNamespace(tokenize=lambda text: word_tokens.words(text, name))
    return rouge_scorer.RougeScorer(list(measures), use_stemmer=stemmer, tokenizer=words)


def rouge_of(
    target: Reference,
    prediction: str,
    measures: Sequence[str] = ROUGE_NAMES,
    stemmer: bool = True,
    tokenize: str | None = None,
) -> dict[str, float]:
    """Computes ROUGE F1 of one text, for the metric and for the reward.

    Args:
      target, prediction: the reference, or several, and the generated text.
      measures: names out of rouge1, rouge2, rouge_l.
      stemmer: compare English words by their Porter stems.
      tokenize: tokenizer as in `rouge`.

    Returns:
      F1 in [0, 1] by measure; of several references the highest, for each measure.
    """
    references = references_in(target)
    name = word_tokens.rouge_tokenizer(" ".join(references), tokenize)
    names = {ours: theirs for theirs, ours in _ROUGE.items()}
    scorer = _rouge_scorer(tuple(names[measure] for measure in measures), stemmer, name)
    signature = rouge_signature(name, stemmer, several=len(references) > 1)
    word_tokens.note_signature("rouge", signature)
    scores = scorer.score_multi(list(references), prediction)
    return {measure: scores[names[measure]].fmeasure for measure in measures}


@functools.cache
def rouge_signature(name: str | None = None, stemmer: bool = True, several: bool = False) -> str:
    """Describes the computation of `rouge`, to be printed with a score.

    Args:
      name: sacreBLEU's name of the tokenizer; None is rouge-score's own tokenizer.
      stemmer: true if English words are stemmed.
      several: true for several references.

    Returns:
      The signature in one line.
    """
    words = "ASCII words, Porter stemming" if stemmer else "ASCII words, no stemming"
    if name is not None:
        words = f"sacreBLEU's {name} words in lower case, no stemming"
    version = importlib.metadata.version("rouge-score")
    best = ", best of several references" if several else ""
    return f"rouge-score {version}, F1, {words}, ROUGE-L of whole texts{best}"


def rouge(
    targets: Sequence[Reference], predictions: Sequence[str], tokenize: str | None = None
) -> dict[str, float]:
    """Computes ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 over examples, with Porter stemming.

    ROUGE-L takes each text as one sentence. Of several references of a row the highest F1 counts,
    for each measure. A reference in another script than the Latin one is split into words by
    `word_tokens.rouge_tokenizer`, as rouge-score keeps ASCII only.

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.
      tokenize: sacreBLEU's name of a tokenizer; None chooses by the script of each reference.

    Returns:
      rouge1, rouge2, rouge_l in 0 … 100.

    Raises:
      ValueError: there are no texts, their numbers differ, or the tokenizer is unknown.

    Source: Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as the package
    rouge-score computes it.

    Two of three words match, in precision and in recall:

    >>> round(rouge(["the cat sat"], ["the cat ran"])["rouge1"], 1)
    66.7
    """
    _check(targets, predictions)
    word_tokens.warn_where_blind("rouge", tokenize, _all_references(targets))
    sums = dict.fromkeys(_ROUGE.values(), 0.0)
    for target, prediction in zip(targets, predictions, strict=True):
        for name, score in rouge_of(target, prediction, tokenize=tokenize).items():
            sums[name] += score
    return {name: 100 * total / len(targets) for name, total in sums.items()}


def bleu(
    targets: Sequence[Reference], predictions: Sequence[str], tokenize: str | None = None
) -> dict[str, float]:
    """Computes corpus BLEU with sacreBLEU; `bleu_signature` describes the computation.

    Args:
      targets: reference texts, or several references of each row; rows may have different numbers.
      predictions: generated texts, in the same order.
      tokenize: sacreBLEU's name of a tokenizer (13a, intl, zh, ja-mecab, ko-mecab, char, flores200,
        …); None chooses by the references' script, 13a for scripts with spaces between words.

    Returns:
      bleu in 0 … 100.

    Raises:
      ValueError: there are no texts, their numbers differ, or the tokenizer is unknown.

    Source: Papineni et al. (2002); Post, "A Call for Clarity in Reporting BLEU Scores" (2018).
    """
    _check(targets, predictions)
    texts = _all_references(targets)
    word_tokens.warn_where_blind("bleu", tokenize, texts)
    scorer = bleu_scorer(tokenize or word_tokens.by_script(texts))
    # Column i holds every row's reference i, None where a row has fewer.
    columns = itertools.zip_longest(*map(references_in, targets))
    score = scorer.corpus_score(list(predictions), [list(column) for column in columns]).score
    word_tokens.note_signature("bleu", str(scorer.get_signature()))
    return {"bleu": score}


@functools.cache
def bleu_scorer(name: str = word_tokens.DEFAULT, effective_order: bool = False) -> Any:
    """Builds sacreBLEU's scorer with a tokenizer.

    Args:
      name: sacreBLEU's name of the tokenizer.
      effective_order: leave out n-gram orders that a text is too short for; for single sentences.

    Returns:
      The scorer.

    Raises:
      ValueError: the tokenizer is unknown, or its package is missing.
    """
    word_tokens.check_tokenizer(name)
    return sacrebleu.BLEU(tokenize=name, effective_order=effective_order)


def bleu_signature(name: str = word_tokens.DEFAULT) -> str:
    """Returns sacreBLEU's signature of `bleu`, to be printed with a score.

    Args:
      name: sacreBLEU's name of the tokenizer.
    """
    scorer = bleu_scorer(name)
    scorer.corpus_score(["a"], [["a"]])  # the signature includes the number of references
    return str(scorer.get_signature())


def final_answer(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """Computes the accuracy of the final number, as generated and after a calculator.

    Args:
      targets: reference solutions, whose answers are extracted without the calculator.
      predictions: generated solutions, in the same order.

    Returns:
      exact_match and exact_match_calculator in 0 … 100.

    Raises:
      ValueError: there are no texts, or their numbers differ.

    Source: Cobbe et al., "Training Verifiers to Solve Math Word Problems" (2021) for the
    calculator, which here corrects the finished text: see `calculator.apply_calculator`.

    >>> final_answer(["#### 12"], ["3 * 4 = 13. The answer is 13."])
    {'exact_match': 0.0, 'exact_match_calculator': 100.0}
    """
    _check(targets, predictions)
    plain = calculated = 0
    for target, prediction in zip(targets, predictions, strict=True):
        numbers = [calculator.final_number(reference) for reference in references_in(target)]
        found = calculator.final_number(prediction)
        corrected = calculator.final_number(prediction, calculator=True)
        plain += any(answers.is_right(number, found) for number in numbers)
        calculated += any(answers.is_right(number, corrected) for number in numbers)
    return {
        "exact_match": 100 * plain / len(targets),
        "exact_match_calculator": 100 * calculated / len(targets),
    }


def exact_match(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """Computes the share of texts that equal their reference after `normalised`.

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.

    Returns:
      exact_match in 0 … 100.

    Raises:
      ValueError: there are no texts, or their numbers differ.
    """
    return {"exact_match": _share_equal(normalised, targets, predictions)}


def answer_match(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """Computes the accuracy of the stated answer, see `stated_answer`.

    For answers without a chain of thought it equals `exact_match`.

    Args:
      targets: reference texts, each an answer or a solution that states it.
      predictions: generated texts, in the same order.

    Returns:
      exact_match in 0 … 100.

    Raises:
      ValueError: there are no texts, or their numbers differ.

    Source: Suzgun et al., "Challenging BIG-Bench Tasks and Whether Chain-of-Thought Can Solve Them"
    (2022), who extract answers after the same words.
    """
    return {"exact_match": _share_equal(stated_answer, targets, predictions)}


def multiple_choice(targets: Sequence[Reference], predictions: Sequence[str]) -> dict[str, float]:
    """Computes the accuracy of the chosen option, see `chosen_letter`.

    Args:
      targets: letters of the correct options, `B` or `(B)`.
      predictions: generated texts, or the options of highest likelihood, in the same order.

    Returns:
      accuracy in 0 … 100.

    Raises:
      ValueError: there are no texts, or their numbers differ.
    """
    return {"accuracy": _share_equal(chosen_letter, targets, predictions)}


def _share_equal(answer_of: Any, targets: Sequence[Reference], predictions: Sequence[str]) -> float:
    """Percentage of rows whose answers are equal; a reference without an answer never matches."""
    _check(targets, predictions)
    pairs = zip(targets, predictions, strict=True)
    right = (
        any(answers.agree(answer_of, reference, text) for reference in references_in(target))
        for target, text in pairs
    )
    return 100 * sum(right) / len(targets)

"""Metrics of generated text, in percent, with seqio's signature (targets, predictions) -> dict."""

from __future__ import annotations

import functools
import importlib.metadata
import types
from collections.abc import Sequence
from typing import Any

import sacrebleu

from gkd.metrics import answers, calculator, word_tokens
from gkd.metrics.answers import chosen_letter, normalised, stated_answer

_ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}  # rouge-score's names, ours
ROUGE_NAMES = tuple(_ROUGE.values())


def _check(targets: Sequence[str], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions) or not targets:
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets: give one each, one or more"
        )


@functools.cache
def _rouge_scorer(measures: tuple[str, ...], stemmer: bool, name: str | None) -> Any:
    from rouge_score import rouge_scorer  # brings scipy.stats: seconds of every start

    words = name and types.SimpleNamespace(tokenize=lambda text: word_tokens.words(text, name))
    return rouge_scorer.RougeScorer(list(measures), use_stemmer=stemmer, tokenizer=words)


def rouge_of(
    target: str,
    prediction: str,
    measures: Sequence[str] = ROUGE_NAMES,
    stemmer: bool = True,
    tokenize: str | None = None,
) -> dict[str, float]:
    """ROUGE F1 of one text in [0, 1], for the metric and for the reward.

    Args:
      target, prediction: the reference and the generated text.
      measures: of rouge1, rouge2, rouge_l.
      stemmer: whether English words are compared by their Porter stems.
      tokenize: as `rouge`'s.
    """
    name = word_tokens.rouge_tokenizer(target, tokenize)
    names = {ours: theirs for theirs, ours in _ROUGE.items()}
    scorer = _rouge_scorer(tuple(names[measure] for measure in measures), stemmer, name)
    word_tokens.note_signature("rouge", rouge_signature(name, stemmer))
    scores = scorer.score(target, prediction)
    return {measure: scores[names[measure]].fmeasure for measure in measures}


@functools.cache
def rouge_signature(name: str | None = None, stemmer: bool = True) -> str:
    """How `rouge` is computed, to be printed with a score.

    Args:
      name: the tokenizer, one of sacreBLEU's names; None is rouge-score's own.
      stemmer: whether English words are stemmed.
    """
    own = "ASCII words, Porter stemming" if stemmer else "ASCII words, no stemming"
    words = own if name is None else f"sacreBLEU's {name} words in lower case, no stemming"
    version = importlib.metadata.version("rouge-score")
    return f"rouge-score {version}, F1, {words}, ROUGE-L of whole texts"


def rouge(
    targets: Sequence[str], predictions: Sequence[str], tokenize: str | None = None
) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L: mean F1 over examples, with Porter stemming.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), as the package rouge-score
    computes it. ROUGE-L takes each text as one sentence. A reference in another script than the
    Latin one is split into words by `word_tokens.rouge_tokenizer`: rouge-score sees ASCII only.

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.
      tokenize: one of sacreBLEU's names; None chooses by each reference's script.

    Returns:
      rouge1, rouge2, rouge_l in 0 … 100.

    Raises:
      ValueError: if there are no texts, not as many of one as of the other, or no such tokenizer.
    """
    _check(targets, predictions)
    word_tokens.warn_where_blind("rouge", tokenize, targets)
    sums = dict.fromkeys(_ROUGE.values(), 0.0)
    for target, prediction in zip(targets, predictions, strict=True):
        for name, score in rouge_of(target, prediction, tokenize=tokenize).items():
            sums[name] += score
    return {name: 100 * total / len(targets) for name, total in sums.items()}


def bleu(
    targets: Sequence[str], predictions: Sequence[str], tokenize: str | None = None
) -> dict[str, float]:
    """Corpus BLEU as sacreBLEU computes it; `bleu_signature` says how.

    Papineni et al. (2002); Post, "A Call for Clarity in Reporting BLEU Scores" (2018).

    Args:
      targets: reference texts.
      predictions: generated texts, in the same order.
      tokenize: one of sacreBLEU's names (13a, intl, zh, ja-mecab, ko-mecab, char, flores200, …);
        None chooses by the references' script, 13a for all that put spaces between words.

    Returns:
      bleu in 0 … 100.

    Raises:
      ValueError: if there are no texts, not as many of one as of the other, or no such tokenizer.
    """
    _check(targets, predictions)
    word_tokens.warn_where_blind("bleu", tokenize, targets)
    scorer = bleu_scorer(tokenize or word_tokens.by_script(targets))
    score = scorer.corpus_score(list(predictions), [list(targets)]).score
    word_tokens.note_signature("bleu", str(scorer.get_signature()))
    return {"bleu": score}


@functools.cache
def bleu_scorer(name: str = word_tokens.DEFAULT, effective_order: bool = False) -> Any:
    """sacreBLEU's scorer with a tokenizer.

    Args:
      name: one of sacreBLEU's names.
      effective_order: for single sentences: a text of under four words has no 4-gram, which must
        not make it 0.

    Raises:
      ValueError: if there is no such tokenizer, or its package is missing.
    """
    word_tokens.check_tokenizer(name)
    return sacrebleu.BLEU(tokenize=name, effective_order=effective_order)


def bleu_signature(name: str = word_tokens.DEFAULT) -> str:
    """sacreBLEU's signature of `bleu`, to be printed with a score.

    Args:
      name: of the tokenizer, as sacreBLEU names it.
    """
    scorer = bleu_scorer(name)
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
        plain += answers.is_right(answer, calculator.final_number(prediction))
        calculated += answers.is_right(answer, calculator.final_number(prediction, calculator=True))
    return {
        "exact_match": 100 * plain / len(targets),
        "exact_match_calculator": 100 * calculated / len(targets),
    }


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
    pairs = zip(targets, predictions, strict=True)
    return 100 * sum(answers.agree(answer_of, *pair) for pair in pairs) / len(targets)

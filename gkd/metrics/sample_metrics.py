"""Computes metrics over several samples in percent: pass@k, maj@k, Self-BLEU, distinct-n."""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.metrics import metrics, word_tokens
from gkd.metrics.answers import Reference, is_right, references_in


def _number_of_samples(samples: Sequence[Sequence[str]]) -> int:
    sizes = {len(row) for row in samples}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"{len(samples)} prompts with {sorted(sizes)} samples: give each prompt equally many, "
            "one or more"
        )
    return sizes.pop()


def most_common(answers: Sequence[Hashable]) -> Hashable:
    """Finds the most frequent answer; of equally frequent ones the one given first.

    Args:
      answers: one answer per sample; None is no answer and does not vote.

    Returns:
      The answer, or None if no sample gives one.

    >>> most_common(["4", None, "5", None, "5"])
    '5'
    """
    # A Counter keeps the order of first appearance, and most_common sorts stably.
    votes = collections.Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def majority(
    targets: Sequence[Reference],
    samples: Sequence[Sequence[str]],
    answer_of: Callable[[str], Any],
    reference_answer_of: Callable[[str], Any] | None = None,
) -> dict[str, float]:
    """Computes maj@k, the accuracy of the most frequent answer among k samples.

    Ties go to the answer seen first, and samples without an answer do not vote.

    Args:
      targets: reference texts, one per prompt, or several: the answer of any is right.
      samples: k generated texts per prompt, in the same order.
      answer_of: function of a generated text to its answer, None for no answer.
      reference_answer_of: function of a reference to its answer; by default `answer_of`.

    Returns:
      maj@k in 0 … 100, under its name with k, e.g. `maj@8`.

    Raises:
      ValueError: there is no prompt, or the numbers of samples differ.

    Source: Wang et al., "Self-Consistency Improves Chain of Thought Reasoning" (2022), unweighted.

    >>> majority(["4", "7"], [["4", "5", "4"], ["1", "7", "1"]], str.strip)
    {'maj@3': 50.0}
    """
    if len(targets) != len(samples):
        raise ValueError(f"samples of {len(samples)} prompts for {len(targets)} targets")
    size = _number_of_samples(samples)
    right = 0
    for target, row in zip(targets, samples, strict=True):
        right_answers = map(reference_answer_of or answer_of, references_in(target))
        found = most_common([answer_of(text) for text in row])
        right += any(is_right(answer, found) for answer in right_answers)
    return {f"maj@{size}": 100 * right / len(targets)}


def pass_at(
    targets: Sequence[Reference],
    samples: Sequence[Sequence[str]],
    answer_of: Callable[[str], Any],
    reference_answer_of: Callable[[str], Any] | None = None,
) -> dict[str, float]:
    """Computes pass@k, the probability that one of k samples is right, for k = 1, 2, 4, … and all.

    With c of n samples right it is 1 − C(n−c, k) / C(n, k), an estimate without bias.

    Args:
      targets, samples, answer_of, reference_answer_of: as for `majority`, n texts per prompt.

    Returns:
      pass@k in 0 … 100, under names with k, e.g. `pass@4`; pass@1 is the mean accuracy.

    Raises:
      ValueError: there is no prompt, or the numbers of samples differ.

    Source: Chen et al., "Evaluating Large Language Models Trained on Code" (2021), equation 1.

    One of three samples is right: pass@2 is 1 − C(2, 2) / C(3, 2).

    >>> found = pass_at(["4"], [["4", "5", "6"]], str.strip)
    >>> {name: round(value, 1) for name, value in found.items()}
    {'pass@1': 33.3, 'pass@2': 66.7, 'pass@3': 100.0}
    """
    if len(targets) != len(samples):
        raise ValueError(f"samples of {len(samples)} prompts for {len(targets)} targets")
    size = _number_of_samples(samples)
    right = []
    for target, row in zip(targets, samples, strict=True):
        answers = list(map(reference_answer_of or answer_of, references_in(target)))
        found = [answer_of(text) for text in row]
        right.append(sum(any(is_right(answer, each) for answer in answers) for each in found))
    powers = [2**i for i in range(size.bit_length())]
    ks = sorted({k for k in powers if k <= size} | {size})
    return {f"pass@{k}": 100 * sum(_passes(size, c, k) for c in right) / len(right) for k in ks}


def _passes(size: int, right: int, k: int) -> float:
    return 1 - math.comb(size - right, k) / math.comb(size, k)


def self_bleu(samples: Sequence[Sequence[str]], tokenize: str | None = None) -> dict[str, float]:
    """Computes Self-BLEU, the similarity of the samples of one prompt; 100 if all are equal.

    It is the mean over prompts, and over the k samples of a prompt, of sacreBLEU's sentence BLEU of
    the sample with all k−1 others as references; see `self_bleu_signature`. An empty sample
    scores 0.

    Args:
      samples: k ≥ 2 generated texts per prompt.
      tokenize: sacreBLEU's name of a tokenizer; None chooses by the script of the samples.

    Returns:
      self_bleu in 0 … 100.

    Raises:
      ValueError: there is no prompt, the numbers of samples differ, or there is only one sample.

    Source: Zhu et al., "Texygen" (2018), applied within a prompt.
    """
    size = _number_of_samples(samples)
    if size < 2:
        raise InvalidValue("Self-BLEU compares a prompt's samples: it needs two or more, not 1")
    name = tokenize or word_tokens.by_script([text for row in samples for text in row])
    scorer = metrics.bleu_scorer(name, effective_order=True)
    word_tokens.note_signature("self_bleu", self_bleu_signature(name))
    total = 0.0
    for row in samples:
        # Equal samples have equal scores: sharp models write the same text many times.
        counts = collections.Counter(row)
        for text, count in counts.items():
            others = list((counts - collections.Counter([text])).elements())
            total += count * scorer.sentence_score(text, others).score
    return {"self_bleu": total / (size * len(samples))}


def self_bleu_signature(name: str = word_tokens.DEFAULT) -> str:
    """Returns sacreBLEU's signature of `self_bleu`, with k−1 as the number of references.

    Args:
      name: sacreBLEU's name of the tokenizer.
    """
    scorer = metrics.bleu_scorer(name, effective_order=True)
    scorer.sentence_score("a", ["a"])
    return str(scorer.get_signature()).replace("nrefs:1", "nrefs:k-1")


def distinct(samples: Sequence[Sequence[str]]) -> dict[str, float]:
    """Computes distinct-1 and distinct-2, and the share of different samples of a prompt.

    For each prompt it is the number of different n-grams in all of its samples over the number of
    n-grams; then the mean over the prompts that have any. Words are separated by white space (or
    by `word_tokens.by_script` in a script without spaces); no n-gram spans two samples. The value
    falls with the length of texts: compare it at equal lengths only.

    Args:
      samples: k generated texts per prompt.

    Returns:
      distinct_1 and distinct_2 in 0 … 100, 0 if there is no n-gram at all; and distinct_samples,
      the share of different texts among a prompt's samples, averaged over prompts.

    Raises:
      ValueError: there is no prompt, or the numbers of samples differ.

    Source: Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models"
    (2016), applied within a prompt.

    Of the words a b a c, three of four are different, and both pairs of words are:

    >>> distinct([["a b", "a c"]])
    {'distinct_1': 75.0, 'distinct_2': 100.0, 'distinct_samples': 100.0}
    """
    size = _number_of_samples(samples)
    different = sum(len(set(row)) for row in samples)
    return {
        **{f"distinct_{n}": _distinct(samples, n) for n in (1, 2)},
        "distinct_samples": 100 * different / (size * len(samples)),
    }


def _distinct(samples: Sequence[Sequence[str]], n: int) -> float:
    name = word_tokens.by_script([text for row in samples for text in row])
    split = str.split if name == word_tokens.DEFAULT else word_tokens.tokenizer(name)
    shares = []
    for row in samples:
        grams: list[tuple[str, ...]] = []
        for text in row:
            words = split(text) if split is str.split else split(text).split()
            grams += zip(*(words[i:] for i in range(n)), strict=False)
        if grams:
            shares.append(len(set(grams)) / len(grams))
    return 100 * sum(shares) / len(shares) if shares else 0.0

"""Metrics over several samples a prompt: majority vote, Self-BLEU and distinct-n, in percent."""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from gkd.errors import InvalidValue
from gkd.metrics import metrics, word_tokens


def _number_of_samples(samples: Sequence[Sequence[str]]) -> int:
    sizes = {len(row) for row in samples}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"{len(samples)} prompts with {sorted(sizes)} samples: give each prompt equally many, "
            "one or more"
        )
    return sizes.pop()


def most_common(answers: Sequence[Hashable]) -> Hashable:
    """The answer given most often; of equally frequent ones the one given first.

    Args:
      answers: one a sample; None is no answer and does not vote.

    Returns:
      The answer, or None where no sample gives one.
    """
    # A Counter keeps the order of first appearance, and most_common sorts stably.
    votes = collections.Counter(answer for answer in answers if answer is not None)
    return votes.most_common(1)[0][0] if votes else None


def majority(
    targets: Sequence[str],
    samples: Sequence[Sequence[str]],
    answer_of: Callable[[str], Any],
    reference_answer_of: Callable[[str], Any] | None = None,
) -> dict[str, float]:
    """maj@k: how often the most common answer of k samples is right.

    Wang et al., "Self-Consistency Improves Chain of Thought Reasoning" (2022), unweighted; ties go
    to the answer seen first, samples without an answer do not vote.

    Args:
      targets: reference texts, one a prompt.
      samples: k generated texts a prompt, in the same order.
      answer_of: the answer of a generated text, None where there is none.
      reference_answer_of: the answer of a reference; by default `answer_of`.

    Returns:
      maj@k in 0 … 100, under the name with k in it, e.g. `maj@8`.

    Raises:
      ValueError: if there is no prompt, or not equally many samples for each.
    """
    if len(targets) != len(samples):
        raise ValueError(f"samples of {len(samples)} prompts for {len(targets)} targets")
    size = _number_of_samples(samples)
    right = 0
    for target, row in zip(targets, samples, strict=True):
        answer = (reference_answer_of or answer_of)(target)
        right += answer is not None and most_common([answer_of(text) for text in row]) == answer
    return {f"maj@{size}": 100 * right / len(targets)}


def self_bleu(samples: Sequence[Sequence[str]], tokenize: str | None = None) -> dict[str, float]:
    """Self-BLEU: how alike the samples of one prompt are; 100 is all the same.

    Zhu et al., "Texygen" (2018), within a prompt: the mean over prompts and over a prompt's k
    samples of sacreBLEU's sentence BLEU of the sample, all k−1 others its references
    (`self_bleu_signature` says how it is computed). An empty sample scores 0.

    Args:
      samples: k ≥ 2 generated texts per prompt.
      tokenize: one of sacreBLEU's names; None chooses by the samples' script.

    Returns:
      self_bleu in 0 … 100.

    Raises:
      ValueError: if there is no prompt, not equally many samples for each, or only one.
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
    """sacreBLEU's signature of `self_bleu`, but for the number of references: k−1.

    Args:
      name: of the tokenizer, as sacreBLEU names it.
    """
    scorer = metrics.bleu_scorer(name, effective_order=True)
    scorer.sentence_score("a", ["a"])
    return str(scorer.get_signature()).replace("nrefs:1", "nrefs:k-1")


def distinct(samples: Sequence[Sequence[str]]) -> dict[str, float]:
    """distinct-1 and distinct-2: different n-grams among all n-grams of a prompt's samples.

    Li et al., "A Diversity-Promoting Objective Function for Neural Conversation Models" (2016),
    within a prompt: for each prompt the number of different n-grams in its samples together, over
    the number of all of them; then the mean over the prompts with any. Words are what white space
    separates, as written (in a script without spaces, `word_tokens.by_script`'s); no n-gram spans
    two samples. It falls as texts get longer: compare it at
    equal lengths only.

    Args:
      samples: k generated texts a prompt.

    Returns:
      distinct_1 and distinct_2 in 0 … 100; 0 where there is no n-gram at all.

    Raises:
      ValueError: if there is no prompt, or not equally many samples for each.
    """
    _number_of_samples(samples)
    return {f"distinct_{n}": _distinct(samples, n) for n in (1, 2)}


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

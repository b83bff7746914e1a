"""The rewards of a run: rule-based functions of text, or reward models inside the step's program.

A rule-based reward is a function (prompts, samples, references) -> one number per sample, in
[0, 1]; gin binds its other arguments. A reward model that scores on the devices is a `ModelReward`
(`entailment` builds one). A run chooses one by REWARD = @reward_functions.exact_number or
REWARD = @reward_functions.entailment().
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from gkd.errors import InvalidValue
from gkd.metrics import answers, metrics, word_tokens
from gkd.metrics.calculator import final_number
from gkd.vocabularies import vocabularies
from gkd.vocabularies.token_rows import decode_prompts, ends_prompts

# (prompts, samples, references) -> rewards, all of one length
HostReward = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class ModelReward:
    """A reward model that scores samples inside the step's program, on the devices.

    Attributes:
      build: function of the task's vocabulary to the reward, an object with
        `score(model, params, encoder_input_tokens [B, S], target_tokens [N, T]) -> float32 [N]`.
    """

    build: Callable[[Any], Any]


def exact_number(
    prompts: Sequence[str],
    samples: Sequence[str],
    references: Sequence[str],
    calculator: bool = False,
) -> list[float]:
    """Rewards a sample with 1 if its final number equals the reference's, else with 0.

    Args:
      prompts: not used.
      samples: generated solutions.
      references: reference solutions; one without a number gives 0.
      calculator: correct the arithmetic of a sample first. Off by default: a student that is
        rewarded for wrong equations learns them.

    Returns:
      One reward per sample.

    >>> exact_number(["1 + 2?"] * 2, ["The answer is 3.", "It is 4"], ["#### 3"] * 2)
    [1.0, 0.0]
    """
    del prompts
    return [
        float(answers.is_right(final_number(reference), final_number(sample, calculator)))
        for sample, reference in zip(samples, references, strict=True)
    ]


def answer_match(
    prompts: Sequence[str], samples: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Rewards a sample with 1 if its stated answer equals the reference's, else with 0.

    The mean over samples is `metrics.answer_match` divided by 100.

    Args:
      prompts: not used.
      samples: generated texts.
      references: reference texts.

    Returns:
      One reward per sample.
    """
    del prompts
    pairs = zip(references, samples, strict=True)
    return [float(answers.agree(answers.stated_answer, *pair)) for pair in pairs]


def multiple_choice(
    prompts: Sequence[str], samples: Sequence[str], references: Sequence[str]
) -> list[float]:
    """Rewards a sample with 1 if it chooses the correct option, else with 0.

    The mean over samples is `metrics.multiple_choice` divided by 100.

    Args:
      prompts: not used.
      samples: generated texts.
      references: letters of the correct options; a reference without a letter gives 0.

    Returns:
      One reward per sample.
    """
    del prompts
    pairs = zip(references, samples, strict=True)
    return [float(answers.agree(answers.chosen_letter, *pair)) for pair in pairs]


def rouge(
    prompts: Sequence[str],
    samples: Sequence[str],
    references: Sequence[str],
    name: str = "rouge2",
    stemmer: bool = True,
    tokenize: str | None = None,
) -> list[float]:
    """Rewards each sample with its ROUGE F1, see `metrics.rouge`.

    Args:
      prompts: not used.
      samples: generated texts.
      references: reference texts.
      name: rouge1, rouge2 or rouge_l.
      stemmer: compare English words by their Porter stems.
      tokenize: tokenizer as in `metrics.rouge`.

    Returns:
      One reward per sample, in [0, 1].

    Raises:
      ValueError: the name or the tokenizer is unknown.
    """
    del prompts
    if name not in metrics.ROUGE_NAMES:
        raise InvalidValue(
            f"reward_functions.rouge.name is {name!r}: choose one of "
            f"{', '.join(metrics.ROUGE_NAMES)}"
        )
    word_tokens.warn_where_blind("rouge", tokenize, references)
    return [
        metrics.rouge_of(reference, sample, (name,), stemmer, tokenize)[name]
        for sample, reference in zip(samples, references, strict=True)
    ]


def bleu(
    prompts: Sequence[str],
    samples: Sequence[str],
    references: Sequence[str],
    tokenize: str | None = None,
) -> list[float]:
    """Rewards each sample with sacreBLEU's sentence BLEU (exponential smoothing, case-sensitive).

    With sacreBLEU's effective order, samples of fewer than four words are scored by the n-grams
    that they have.

    Args:
      prompts: not used.
      samples: generated texts.
      references: reference texts.
      tokenize: sacreBLEU's name of a tokenizer; None chooses by the script of each reference.

    Returns:
      One reward per sample, in [0, 1].

    Raises:
      ValueError: the tokenizer is unknown.
    """
    del prompts
    word_tokens.warn_where_blind("bleu", tokenize, references)
    rewards = []
    for sample, reference in zip(samples, references, strict=True):
        scorer = metrics.bleu_scorer(tokenize or word_tokens.by_script([reference]), True)
        score = scorer.sentence_score(sample, [reference]).score
        rewards.append(min(score / 100, 1.0))  # sacreBLEU's best is 100.00000000000004
    return rewards


def entailment(
    premise: str = "premise: ",
    hypothesis: str = " hypothesis: ",
    entailment: str = "1",
    prompt_prefix: str = "summarize: ",
    input_length: int = 1024,
    hypothesis_first: bool = False,
) -> ModelReward:
    """Rewards a sample with the probability that its prompt's document entails it (T5 NLI model).

    The defaults are those of the TRUE NLI model (google/t5_xxl_true_nli_mixture). For T5's own
    MNLI: premise ' premise: ', hypothesis 'mnli hypothesis: ', hypothesis_first, 'entailment'.

    Args:
      premise, hypothesis: text before the document and before the sample.
      entailment: the model's answer for an entailed sample. Only its first token is scored, which
        must differ from that of other answers.
      prompt_prefix: the task's text before every document, which is removed.
      input_length: greatest length of the NLI model's input in tokens; documents are truncated.
      hypothesis_first: put the sample before the document.

    Returns:
      The reward; its `build` raises ValueError if the texts have no tokens to compare.

    Source: Honovich et al., "TRUE: Re-evaluating Factual Consistency Evaluation" (2022).
    """

    def build(vocabulary: Any) -> Any:
        from gkd.distill.reward_models import Entailment  # imports JAX, which no other reward needs

        if not ends_prompts(vocabulary):
            raise InvalidValue(
                "reward_functions.entailment reads prompts that end with EOS: it needs models of "
                "T5's family, with the NLI model's vocabulary"
            )
        texts = (premise, hypothesis, prompt_prefix, entailment)
        ids = [tuple(row) for row in vocabularies.encode_texts(vocabulary, texts)]
        if not ids[3] or vocabulary.unk_id in ids[3][:1]:
            raise InvalidValue(
                f"reward_functions.entailment.entailment is {entailment!r}, which has no token in "
                "the vocabulary: give the word that the NLI model answers"
            )
        return Entailment(
            ids[0], ids[1], ids[3][0], input_length, ids[2], hypothesis_first,
            eos_id=vocabulary.eos_id, padding_id=vocabulary.pad_id,
        )  # fmt: skip

    return ModelReward(build)


def rewards_of_rows(
    reward: HostReward,
    vocabulary: Any,
    encoder_input_tokens: Int[np.ndarray, "prompts input_length"],
    target_tokens: Int[np.ndarray, "rows length"],
    reference_tokens: Int[np.ndarray, "prompts reference_length"],
    samples_per_prompt: int = 1,
) -> Float[np.ndarray, " rows"]:
    """Computes rule-based rewards of rows from their tokens.

    Every host calls it with its own rows only, so that no host needs the texts of others. Texts are
    decoded from the tokens: a reference that was truncated in the batch is compared truncated.

    Args:
      reward: rule-based reward.
      vocabulary: a seqio vocabulary.
      encoder_input_tokens: [B, S], ids of the prompts.
      target_tokens: [N, T], ids of N = B·G samples; row = prompt·G + sample.
      reference_tokens: [B, T'], ids of the data set's targets.
      samples_per_prompt: G, the number of samples per prompt.

    Returns:
      float32 [N], one reward per row.

    Raises:
      ValueError: there are not B·G rows, or the reward is not one finite float32 per sample.
    """
    prompts = decode_prompts(vocabulary, encoder_input_tokens)
    references = vocabularies.decode_tokens(vocabulary, reference_tokens)
    samples = vocabularies.decode_tokens(vocabulary, target_tokens)
    if len(samples) != len(prompts) * samples_per_prompt or len(references) != len(prompts):
        raise ValueError(
            f"{len(samples)} samples of {len(prompts)} prompts with {len(references)} references: "
            f"give {samples_per_prompt} samples and one reference per prompt"
        )
    prompts, references = (
        [text for text in texts for _ in range(samples_per_prompt)]
        for texts in (prompts, references)
    )
    values = [float(value) for value in reward(prompts, samples, references)]
    wrong = [value for value in values if not abs(value) <= _LARGEST]  # or NaN
    if len(values) != len(samples) or wrong:
        result = f"the reward {wrong[0]}" if wrong else f"{len(values)} rewards"
        raise InvalidValue(
            f"{getattr(reward, '__name__', reward)} gave {result} for {len(samples)} samples: a "
            "reward is one finite float32 number per sample"
        )
    return np.array(values, np.float32)

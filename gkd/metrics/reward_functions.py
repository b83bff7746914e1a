"""Rewards of a run: functions of texts, on the host, or models that score in the step's program.

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

# (prompts, samples, references) -> rewards, all of one length
HostReward = Callable[[Sequence[str], Sequence[str], Sequence[str]], Sequence[float]]

_LARGEST = float(np.finfo(np.float32).max)


@dataclasses.dataclass(frozen=True)
class ModelReward:
    """A reward that a model gives inside the step's program, on the devices.

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
    """1 where the final number is the reference's, else 0; see `calculator.final_number`.

    Args:
      prompts: not used.
      samples: generated solutions.
      references: reference solutions; one without a number is never met.
      calculator: whether to correct a sample's arithmetic first. Off by default: a student that is
        rewarded for wrong equations learns them.

    Returns:
      One reward a sample.
    """
    del prompts
    return [
        float(answers.is_right(final_number(reference), final_number(sample, calculator)))
        for sample, reference in zip(samples, references, strict=True)
    ]


def answer_match(
    prompts: Sequence[str], samples: Sequence[str], references: Sequence[str]
) -> list[float]:
    """1 where the stated answer is the reference's, else 0; `metrics.answer_match` of each sample.

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
    """1 where the chosen option is the reference's, else 0; `metrics.multiple_choice` of each.

    Args:
      prompts: not used.
      samples: generated texts.
      references: the right options' letters; one without a letter is never met.

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
    """ROUGE F1 of each sample, as the package rouge-score computes it; see `metrics.rouge`.

    Args:
      prompts: not used.
      samples: generated texts.
      references: reference texts.
      name: rouge1, rouge2 or rouge_l.
      stemmer: whether words are compared by their Porter stems.
      tokenize: as the metric's.

    Returns:
      One reward per sample, in [0, 1].

    Raises:
      ValueError: another name, or no such tokenizer.
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
    """Sentence BLEU of each sample: sacreBLEU's (exponential smoothing, case kept).

    With sacreBLEU's effective order, a sample of under four words is scored by the n-grams it has.

    Args:
      prompts: not used.
      samples: generated texts.
      references: reference texts.
      tokenize: one of sacreBLEU's names; None chooses by each reference's script.

    Returns:
      One reward per sample, in [0, 1].

    Raises:
      ValueError: no such tokenizer.
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
    """Textual entailment of the sample by its prompt's document, from a T5 NLI model.

    The defaults are those of the TRUE NLI model (google/t5_xxl_true_nli_mixture). For T5's own
    MNLI: premise ' premise: ', hypothesis 'mnli hypothesis: ', hypothesis_first, 'entailment'.

    Args:
      premise, hypothesis: text before the document and before the sample.
      entailment: the model's answer where the sample is entailed. Its first token counts, which
        must tell it from the other answers.
      prompt_prefix: the task's own text before every document; it is left out.
      input_length: tokens of the NLI model's input; a longer document is cut.
      hypothesis_first: whether the sample stands before the document.

    Returns:
      The reward; its `build` raises ValueError where the texts have no tokens to compare.
    """

    def build(vocabulary: Any) -> Any:
        from gkd.distill.reward_models import Entailment  # JAX, which the other rewards do without

        texts = (premise, hypothesis, prompt_prefix, entailment)
        ids = [tuple(row) for row in vocabularies.encode_texts(vocabulary, texts)]
        if not ids[3] or vocabulary.unk_id in ids[3][:1]:
            raise InvalidValue(
                f"reward_functions.entailment.entailment is {entailment!r}, which has no token in "
                "the "
                "vocabulary: give the word that the NLI model answers"
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
    """The host rewards of some rows, out of their tokens.

    Every host calls it with its own rows only, so that no host needs the others' texts. Texts are
    what the tokens say: a reference that the batch cut is compared as it was cut.

    Args:
      reward: the function.
      vocabulary: a seqio vocabulary.
      encoder_input_tokens: [B, S], the prompts.
      target_tokens: [N, T], N = B·G samples; row = prompt·G + sample.
      reference_tokens: [B, T'], the data set's outputs.
      samples_per_prompt: G.

    Returns:
      float32 [N].

    Raises:
      ValueError: rows that are no B·G, or a reward that is not one finite float32 a sample.
    """
    prompts = vocabularies.decode_tokens(vocabulary, encoder_input_tokens)
    references = vocabularies.decode_tokens(vocabulary, reference_tokens)
    samples = vocabularies.decode_tokens(vocabulary, target_tokens)
    if len(samples) != len(prompts) * samples_per_prompt or len(references) != len(prompts):
        raise ValueError(
            f"{len(samples)} samples of {len(prompts)} prompts with {len(references)} references: "
            f"give {samples_per_prompt} samples and one reference a prompt"
        )
    prompts, references = (
        [text for text in texts for _ in range(samples_per_prompt)]
        for texts in (prompts, references)
    )
    values = [float(value) for value in reward(prompts, samples, references)]
    wrong = [value for value in values if not abs(value) <= _LARGEST]  # or NaN
    if len(values) != len(samples) or wrong:
        found = f"the reward {wrong[0]}" if wrong else f"{len(values)} rewards"
        raise InvalidValue(
            f"{getattr(reward, '__name__', reward)} gave {found} for {len(samples)} samples: a "
            "reward is one finite float32 number a sample"
        )
    return np.array(values, np.float32)

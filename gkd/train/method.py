"""A run's method: what its gin macros choose, checked together, and the pure step it makes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from gkd.decode.sampling import sample
from gkd.distill import advantages, losses, mixing, replay, train_step, truncated_teacher
from gkd.distill.divergence_records import DivergenceRecord, record_of
from gkd.distill.logits import temperature_pair
from gkd.errors import InvalidValue
from gkd.metrics.reward_functions import ModelReward
from gkd.runs.model_loading import LoadedModel

MIXINGS = ("batch", "example")


@dataclasses.dataclass(frozen=True)
class Method:
    """Who writes the sequences, who scores them, and with what loss; the macros of `train`.

    Attributes:
      divergence, beta: of gkd.distill.divergences; None is cross-entropy, or a reward alone.
      on_policy_fraction, mixing: λ, tossed once a batch or for every example.
      normalisation, temperature: of the divergence.
      samples, rollout_length: outputs a prompt, and tokens of each at most.
      sampling: temperature, top_k and top_p of the student's outputs.
      reward, alpha, advantage: RL (equation 5).
      replay: DistiLLM's memory.
      teacher, teacher_top_k, top_k_tail: the teacher's checkpoint, or what it left in a file.

    Raises:
      ValueError: what does not fit together, in one line.
    """

    divergence: Any
    beta: float | None
    on_policy_fraction: Any
    mixing: str
    normalisation: str
    temperature: Any
    samples: int
    rollout_length: int | None
    sampling: dict[str, Any]
    reward: Any
    alpha: float
    advantage: str
    replay: replay.Replay | None
    teacher: str | None
    teacher_top_k: str | None
    top_k_tail: str

    def __post_init__(self):
        self._check_rollouts()
        self._check_divergence()
        if self.reward is not None:
            self._check_reward()
        elif self.alpha != 1:
            raise InvalidValue(f"ALPHA is {self.alpha}, but no REWARD shares the loss: set one")
        if self.replay is not None:
            self._check_replay()
        if self.teacher_top_k is not None:
            self._check_top_k()

    @property
    def scores(self) -> bool:
        """Whether a teacher's distributions are in the loss."""
        return self.divergence is not None and self.alpha > 0

    @property
    def rewards_on_host(self) -> bool:
        """Whether rewards are computed from texts, between two programs."""
        return self.reward is not None and not isinstance(self.reward, ModelReward)

    def _check_rollouts(self):
        if self.mixing not in MIXINGS:
            raise InvalidValue(f"MIXING is {self.mixing!r}: choose one of {', '.join(MIXINGS)}")
        if self.samples < 1:
            raise InvalidValue(f"SAMPLES is {self.samples}: use 1 or more")
        if self.rollout_length is not None and self.rollout_length < 1:
            raise InvalidValue(f"ROLLOUT_LENGTH is {self.rollout_length}: use 1 or more, or None")
        if not self._on_policy and (self.samples > 1 or self.rollout_length is not None):
            raise InvalidValue(
                f"SAMPLES is {self.samples} and ROLLOUT_LENGTH {self.rollout_length}, but λ is 0: "
                "the student writes nothing; raise LAMBDA"
            )
        if self.sampling["temperature"] <= 0:
            raise InvalidValue(
                f"SAMPLING_TEMPERATURE is {self.sampling['temperature']}: use more than 0"
            )

    @property
    def _on_policy(self) -> bool:
        return self.replay is not None or mixing.student_generates(self.on_policy_fraction)

    @property
    def _divergence_record(self) -> DivergenceRecord | None:
        """The divergence with its parameters bound; None where there is none."""
        if self.divergence is None:
            return None
        record = record_of(self.divergence)
        try:
            return record.bind(**({} if self.beta is None else {"beta": self.beta}))
        except ValueError as error:
            raise InvalidValue(
                f"BETA is {self.beta} and DIVERGENCE {record.name}: {error}"
            ) from None

    def _check_divergence(self):
        if min(temperature_pair(self.temperature)) <= 0:
            raise InvalidValue(
                f"TEMPERATURE is {self.temperature}: the divergence needs more than 0"
            )
        if self.divergence is None:
            self._check_no_divergence()
            return
        if not callable(self.divergence):
            raise InvalidValue(
                f"DIVERGENCE is {self.divergence!r}: write @divergences.forward_kl, without ''"
            )
        if self.teacher is None and self.teacher_top_k is None:
            raise InvalidValue("a divergence needs a teacher: set TEACHER to a checkpoint")
        record = self._divergence_record
        if record.on_policy_only and (self.on_policy_fraction != 1 or self.replay is not None):
            raise InvalidValue(
                f"{record.name} judges the student's own tokens, but λ is "
                f"{self.on_policy_fraction}: set LAMBDA to 1.0, without REPLAY"
            )
        if record.needs_sampled_token:
            self._check_sampled_token(record)
        logits = jax.ShapeDtypeStruct((1, 2), np.float32)
        tokens = jax.ShapeDtypeStruct((1,), np.int32)
        jax.eval_shape(record, logits, logits, tokens)  # a β or α out of range is an error now

    def _check_sampled_token(self, record):
        """Refuses samples that are not of the distribution Q of the loss: biased otherwise."""
        if self.sampling["top_k"] != 0 or self.sampling["top_p"] != 1.0:
            raise InvalidValue(
                f"{record.name} needs samples of the student's whole distribution, but "
                f"SAMPLING_TOP_K is {self.sampling['top_k']} and SAMPLING_TOP_P "
                f"{self.sampling['top_p']}: leave them at 0 and 1.0"
            )
        student = temperature_pair(self.temperature).student
        if student != self.sampling["temperature"]:
            raise InvalidValue(
                f"{record.name} at the student's TEMPERATURE {student} needs samples "
                f"drawn at it, but SAMPLING_TEMPERATURE is {self.sampling['temperature']}: set "
                "both to one number"
            )

    def _check_no_divergence(self):
        if self.reward is not None:
            if self.alpha != 0:
                raise InvalidValue(
                    f"ALPHA is {self.alpha} but DIVERGENCE is not set: set it, or ALPHA to 0"
                )
            return
        if self.teacher is not None or self.teacher_top_k is not None:
            raise InvalidValue("TEACHER is set but DIVERGENCE is not: SFT would ignore the teacher")
        if self._on_policy:
            raise InvalidValue(
                f"fine-tuning on the student's own samples (λ={self.on_policy_fraction}) teaches "
                "nothing: set DIVERGENCE and TEACHER, or λ to 0"
            )

    def _check_reward(self):
        if not 0 <= self.alpha <= 1:
            raise InvalidValue(f"ALPHA is {self.alpha}: use a weight of the divergence in [0, 1]")
        if not self._on_policy or self.replay is not None:
            raise InvalidValue("a REWARD judges the student's own outputs: raise LAMBDA, no REPLAY")
        if self.normalisation != "sequence":
            raise InvalidValue(
                f"NORMALISATION is {self.normalisation!r}: with a REWARD the loss is equation 5's, "
                "'sequence'"
            )
        if (self.sampling["temperature"], self.sampling["top_k"], self.sampling["top_p"]) != (
            1.0, 0, 1.0,
        ):  # fmt: skip
            raise InvalidValue(
                "a policy gradient needs samples of the student's own distribution: leave "
                "SAMPLING_TEMPERATURE at 1.0, SAMPLING_TOP_K at 0 and SAMPLING_TOP_P at 1.0"
            )
        advantages.check_kind(self.advantage, self.samples)

    def _check_replay(self):
        if self.on_policy_fraction != 0:
            raise InvalidValue(
                f"λ is {self.on_policy_fraction}, but REPLAY decides who writes: set LAMBDA to 0"
            )
        if self.samples != 1 or self.rollout_length is not None or self.divergence is None:
            raise InvalidValue(
                "REPLAY keeps one whole output a prompt, for a divergence: leave SAMPLES at 1 and "
                "ROLLOUT_LENGTH at None, set DIVERGENCE and TEACHER"
            )

    def _check_top_k(self):
        if self.teacher is not None:
            raise InvalidValue("TEACHER and TEACHER_TOP_K are both set: one of them scores")
        if self._on_policy:
            raise InvalidValue(
                "TEACHER_TOP_K scored the data set's outputs only: set LAMBDA to 0, or a TEACHER"
            )
        truncated_teacher.check_top_k(self._divergence_record, self.top_k_tail, self.temperature)

    def check_dropout(self, dropout: bool) -> None:
        """Raises ValueError where a policy gradient would be trained with dropout.

        Args:
          dropout: whether the student is trained with dropout. Sampling uses none, so the samples
            are not of the distribution whose gradient is taken.
        """
        record = self._divergence_record
        sampled = record is not None and record.needs_sampled_token
        if dropout and (self.reward is not None or sampled):
            raise InvalidValue(
                "DROPOUT_RATE is above 0, but a policy gradient needs samples of the very "
                "distribution that is trained, and sampling uses no dropout: set it to 0.0"
            )

    def make_step(
        self,
        learner: LoadedModel,
        expert: LoadedModel | None,
        judge: LoadedModel | None,
        optimizer: Any,
        valid: Any,
        *,
        vocabulary: Any,
        train_steps: int,
        microbatches: int,
        dropout: bool,
        data_shards: int,
    ) -> train_step.TrainStep | replay.ReplayStep:
        """The pure step.

        Args:
          learner, expert: student and teacher; no teacher where nothing scores, or a file did.
          judge: the model of a reward that is one.
          optimizer: of optax.
          valid: bool [V].
          vocabulary: of the task, for the reward.
          train_steps: of the whole run.
          microbatches, dropout: see `make_train_step`.
          data_shards: devices of the data axis.
        """
        self.check_dropout(dropout)
        teacher_logits_fn = None
        if self.teacher_top_k is not None:
            teacher_logits_fn = truncated_teacher.make_offline_teacher_logits_fn(self.top_k_tail)
        elif expert is not None:
            teacher_logits_fn = train_step.make_teacher_logits_fn(expert.model)
        step = train_step.make_train_step(
            learner.model,
            optimizer,
            divergence_loss_fn=self._loss_fn(valid, data_shards),
            teacher_logits_fn=teacher_logits_fn,
            sample_fn=train_step.make_sample_fn(
                learner.model, sample, valid, self.samples, self.rollout_length, **self.sampling
            ),
            on_policy_fraction=1.0 if self.replay is not None else self.on_policy_fraction,
            samples=self.samples,
            mix_rows=self.mixing == "example",
            reward_fn=self._reward_fn(judge, vocabulary),
            advantage=self.advantage,
            microbatches=microbatches,
            dropout=dropout,
        )
        if self.replay is None:
            return step
        return replay.ReplayStep(step, train_steps, learner.model.special_ids.padding)

    def _loss_fn(self, valid, data_shards):
        divergence = self._divergence_record
        if self.reward is not None and self.alpha < 1:
            return functools.partial(
                losses.reward_and_divergence_loss, alpha=self.alpha, divergence=divergence,
                temperature=self.temperature, valid=valid, data_shards=data_shards,
            )  # fmt: skip
        if divergence is None:
            return losses.make_cross_entropy_loss(self.normalisation, data_shards=data_shards)
        return losses.make_divergence_loss(
            divergence, self.normalisation, self.temperature, valid, data_shards=data_shards
        )

    def _reward_fn(self, judge, vocabulary):
        if not isinstance(self.reward, ModelReward):
            return None
        scorer = self.reward.build(vocabulary)

        def reward_fn(params, batch, written):
            tokens = batch.encoder_input_tokens
            return scorer.score(judge.model, params, tokens, written.target_tokens)

        return reward_fn

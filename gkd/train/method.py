"""A method's step: its settings checked together, and the pure functions that they choose."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from gkd.auxiliary_losses.inner_layer import InnerLayerLoss, with_inner_layer_loss
from gkd.auxiliary_losses.witness import WitnessLoss, WitnessTeacher, with_witness_loss
from gkd.configuration.experiment import Experiment, Method, Teacher
from gkd.decode.sampling import sample
from gkd.distill import (
    advantages,
    losses,
    mixing,
    replay,
    step_functions,
    train_step,
    truncated_teacher,
)
from gkd.distill.divergence_records import DivergenceRecord, record_of
from gkd.distill.logits import temperature_pair
from gkd.distill.step_functions import StudentTeacher
from gkd.errors import InvalidValue
from gkd.metrics.reward_functions import ModelReward
from gkd.models.interface import with_inner_layer
from gkd.runs.model_loading import LoadedModel
from gkd.vocabularies import vocabularies
from gkd.vocabularies.token_rows import ends_prompts


def needs_teacher(method: Method) -> bool:
    """Returns whether a teacher's distributions are in the loss."""
    scores_victims = isinstance(method.auxiliary, WitnessLoss)
    return method.divergence is not None and (method.alpha > 0 or scores_victims)


def teacher_is_student(experiment: Experiment) -> bool:
    """Returns whether the teacher needs no parameters beside the student's.

    They are in the training state, or, as those at the start of a run of adapters, its base.
    """
    method, adapters = experiment.method, experiment.student.lora
    weights = method.teacher_weights
    held = weights in ("current", "average") or (weights == "initial" and adapters is not None)
    return needs_teacher(method) and held


def rewards_weigh(method: Method) -> bool:
    """Returns whether rewards are in the loss; at α = 1 evaluations alone measure them."""
    return method.reward is not None and method.alpha < 1


def rewards_on_host(method: Method) -> bool:
    """Returns whether rewards are computed from texts, between two compiled programs."""
    return rewards_weigh(method) and not isinstance(method.reward, ModelReward)


def student_generates(method: Method) -> bool:
    """Returns whether the student samples sequences at any step."""
    return method.replay is not None or mixing.student_generates(method.on_policy_fraction)


def rollout_length(method: Method, target: int) -> int:
    """Returns the tokens that a sample has at most.

    Args:
      method: the settings.
      target: tokens of a batch's targets, which may be fewer than the run's greatest.
    """
    return min(method.rollout_length or target, target)


def bound_divergence(method: Method) -> DivergenceRecord | None:
    """Returns the divergence with its parameters bound; None where the method has none.

    Raises:
      ValueError: β is missing, or the divergence takes none.
    """
    if method.divergence is None:
        return None
    if not callable(method.divergence):
        raise InvalidValue(
            f"DIVERGENCE is {method.divergence!r}: write @divergences.forward_kl, without ''"
        )
    record = record_of(method.divergence)
    try:
        return record.bind(**({} if method.beta is None else {"beta": method.beta}))
    except ValueError as error:
        raise InvalidValue(f"BETA is {method.beta} and DIVERGENCE {record.name}: {error}") from None


def check_method(method: Method, teacher: Teacher, dropout_rate: float | int = 0.0) -> None:
    """Checks that a method's settings fit together.

    Args:
      method: the settings.
      teacher: the teacher's; a file of scores is one too.
      dropout_rate: the student's while it trains.

    Raises:
      ValueError: the first combination that means nothing, in one line.
    """
    _check_unread(method, teacher)
    _check_rollouts(method)
    _check_divergence(method, teacher)
    if method.reward is not None:
        _check_reward(method)
    elif method.alpha != 1:
        raise InvalidValue(f"ALPHA is {method.alpha}, but no REWARD shares the loss: set one")
    _check_policy_loss(method)
    if method.auxiliary is not None:
        _check_auxiliary(method)
    if method.replay is not None:
        _check_replay(method)
    if teacher.top_k_file is not None:
        _check_top_k(method, teacher)
    record = bound_divergence(method)
    uses_samples = record is not None and record.needs_sampled_token
    if dropout_rate > 0 and (method.reward is not None or uses_samples):
        raise InvalidValue(
            "DROPOUT_RATE is above 0, but a policy gradient needs samples of the very "
            "distribution that is trained, and sampling uses no dropout: set it to 0.0"
        )


def _check_unread(method, teacher):
    """Refuses a setting that nothing reads without another one."""
    for macro, value, default, other, needed in (
        ("BETA", method.beta, None, "DIVERGENCE", method.divergence),
        ("TEMPERATURE", method.temperature, 1, "DIVERGENCE", method.divergence),
        ("ADVANTAGE", method.advantage, "batch", "REWARD", method.reward),
        ("REWARD_MODEL", method.reward_model, None, "REWARD", method.reward),
        ("TEACHER_STEP", teacher.step, None, "TEACHER", teacher.checkpoint),
    ):
        if needed is None and value != default:
            raise InvalidValue(
                f"{macro} is {value!r}, but {other} is not set, and nothing reads it: set {other}, "
                f"or leave {macro} at {default!r}"
            )


def _check_rollouts(method):
    if not student_generates(method) and (method.samples > 1 or method.rollout_length is not None):
        raise InvalidValue(
            f"SAMPLES is {method.samples} and ROLLOUT_LENGTH {method.rollout_length}, but λ is 0: "
            "the student samples nothing; raise LAMBDA"
        )


def _check_divergence(method, teacher):
    if method.divergence is None:
        _check_no_divergence(method, teacher)
        return
    record = bound_divergence(method)
    named = (teacher.checkpoint, teacher.architecture, teacher.top_k_file)
    if method.teacher_weights == "checkpoint" and named == (None, None, None):
        raise InvalidValue(
            "a divergence needs a teacher: set TEACHER to a checkpoint, or TEACHER_WEIGHTS to "
            "'initial', 'current' or 'average', the student's own"
        )
    if record.on_policy_only and (method.on_policy_fraction != 1 or method.replay is not None):
        raise InvalidValue(
            f"{record.name} is defined on the student's own tokens, but λ is "
            f"{method.on_policy_fraction}: set LAMBDA to 1.0, without REPLAY"
        )
    if record.needs_sampled_token:
        _check_sampled_token(method, record)
    logits = jax.ShapeDtypeStruct((1, 2), np.float32)
    tokens = jax.ShapeDtypeStruct((1,), np.int32)
    jax.eval_shape(record, logits, logits, tokens)  # a parameter out of range is an error now


def _check_sampled_token(method, record):
    """Refuses samples that are not of the distribution Q of the loss: biased otherwise."""
    if method.sampling_top_k != 0 or method.sampling_top_p != 1.0:
        raise InvalidValue(
            f"{record.name} needs samples of the student's whole distribution, but SAMPLING_TOP_K "
            f"is {method.sampling_top_k} and SAMPLING_TOP_P {method.sampling_top_p}: leave them at "
            "0 and 1.0"
        )
    temperature = temperature_pair(method.temperature).student
    if temperature != method.sampling_temperature:
        raise InvalidValue(
            f"{record.name} at the student's TEMPERATURE {temperature} needs samples drawn at it, "
            f"but SAMPLING_TEMPERATURE is {method.sampling_temperature}: set both to one number"
        )


def _check_no_divergence(method, teacher):
    if method.reward is not None:
        if method.alpha != 0:
            raise InvalidValue(
                f"ALPHA is {method.alpha} but DIVERGENCE is not set: set it, or ALPHA to 0"
            )
        if teacher.checkpoint is not None:
            raise InvalidValue("TEACHER is set but DIVERGENCE is not: a REWARD reads no teacher")
        return
    if teacher.checkpoint is not None or teacher.top_k_file is not None:
        raise InvalidValue("TEACHER is set but DIVERGENCE is not: SFT would ignore the teacher")
    if student_generates(method):
        raise InvalidValue(
            f"fine-tuning on the student's own samples (λ={method.on_policy_fraction}) teaches "
            "nothing: set DIVERGENCE and TEACHER, or λ to 0"
        )


def _check_reward(method):
    if not student_generates(method) or method.replay is not None:
        raise InvalidValue("a REWARD scores the student's own samples: raise LAMBDA, no REPLAY")
    if method.normalisation != "sequence":
        raise InvalidValue(
            f"NORMALISATION is {method.normalisation!r}: with a REWARD the loss is equation 5's, "
            "'sequence'"
        )
    sampling = (method.sampling_temperature, method.sampling_top_k, method.sampling_top_p)
    if sampling != (1.0, 0, 1.0):
        raise InvalidValue(
            "a policy gradient needs samples of the student's own distribution: leave "
            "SAMPLING_TEMPERATURE at 1.0, SAMPLING_TOP_K at 0 and SAMPLING_TOP_P at 1.0"
        )
    advantages.check_kind(method.advantage, method.samples)


def _check_policy_loss(method):
    if method.policy_loss == "grpo":
        if method.reward is None or method.alpha == 1:
            raise InvalidValue(
                f"POLICY_LOSS is 'grpo', but REWARD is {method.reward} and ALPHA {method.alpha}: "
                "no reward weighs in the loss; set REWARD, and ALPHA below 1"
            )
        return
    for macro, value, default in (
        ("RATIO_CLIP", method.ratio_clip, None),
        ("UPDATES_PER_ROLLOUT", method.updates_per_rollout, 1),
    ):
        if value != default:
            raise InvalidValue(
                f"{macro} is {value}, but POLICY_LOSS {method.policy_loss!r} has no importance "
                f"ratios: set POLICY_LOSS to 'grpo', or {macro} to {default}"
            )


def _check_auxiliary(method):
    if method.reward is None or method.alpha == 1:
        raise InvalidValue(
            f"AUXILIARY_LOSS is added to the policy gradient of rewards, but REWARD is "
            f"{method.reward} and ALPHA {method.alpha}: set REWARD, and ALPHA below 1"
        )
    if not isinstance(method.auxiliary, WitnessLoss):
        return
    if method.divergence is None or method.alpha != 0:
        raise InvalidValue(
            f"WitnessLoss needs a DIVERGENCE, of the victims alone, but it is {method.divergence} "
            f"and ALPHA, its weight on all samples, {method.alpha}: set DIVERGENCE, and ALPHA to 0"
        )
    if method.samples < 2:
        raise InvalidValue(
            f"SAMPLES is {method.samples}, but WitnessLoss needs a wrong sample beside a correct "
            "one: set SAMPLES to 2 or more"
        )


def _check_replay(method):
    if method.on_policy_fraction != 0:
        raise InvalidValue(
            f"λ is {method.on_policy_fraction}, but REPLAY decides who writes: set LAMBDA to 0"
        )
    if method.samples != 1 or method.rollout_length is not None or method.divergence is None:
        raise InvalidValue(
            "REPLAY keeps one whole completion per prompt, for a divergence: leave SAMPLES at 1 "
            "and ROLLOUT_LENGTH at None, set DIVERGENCE and TEACHER"
        )


def _check_top_k(method, teacher):
    if teacher.checkpoint is not None:
        raise InvalidValue("TEACHER and TEACHER_TOP_K_FILE are both set: one of them scores")
    if student_generates(method):
        raise InvalidValue(
            "TEACHER_TOP_K_FILE scored the data set's outputs only: set LAMBDA to 0, or a TEACHER"
        )
    truncated_teacher.check_top_k(bound_divergence(method), teacher.top_k_tail, method.temperature)


def make_step(
    experiment: Experiment,
    student: LoadedModel,
    teacher: LoadedModel | None,
    reward_model: LoadedModel | None,
    optimizer: Any,
    valid: Any,
    data_shards: int,
) -> train_step.TrainStep | replay.ReplayStep:
    """Makes the pure step of an experiment.

    Args:
      experiment: checked, see `check_method`.
      student, teacher: the models; no teacher where nothing scores, or a file did.
      reward_model: the model of a reward that has one.
      optimizer: an optax gradient transformation.
      valid: bool [V], ids that have probability.
      data_shards: devices of the data axis.
    """
    method = experiment.method
    teacher_logits_fn = None
    if experiment.teacher.top_k_file is not None:
        tail = experiment.teacher.top_k_tail
        teacher_logits_fn = truncated_teacher.make_offline_teacher_logits_fn(tail)
    elif teacher is not None:
        teacher_logits_fn = _teacher_logits_fn(method, teacher.model, experiment.task.vocabulary)
        if teacher_is_student(experiment):
            teacher_logits_fn = StudentTeacher(
                teacher_logits_fn, method.teacher_weights, method.teacher_decay
            )
    model, loss_fn = student.model, _loss_fn(method, valid, data_shards)
    if isinstance(method.auxiliary, InnerLayerLoss):
        model = with_inner_layer(model, method.auxiliary.layer)  # sampling is student.model's
        loss_fn = with_inner_layer_loss(loss_fn, method.auxiliary, valid, data_shards)
    step = train_step.make_train_step(
        model,
        optimizer,
        divergence_loss_fn=loss_fn,
        teacher_logits_fn=teacher_logits_fn,
        sample_fn=step_functions.make_sample_fn(
            student.model, sample, valid, method.samples, method.rollout_length,
            temperature=method.sampling_temperature, top_k=method.sampling_top_k,
            top_p=method.sampling_top_p,
        ),
        on_policy_fraction=1.0 if method.replay is not None else method.on_policy_fraction,
        samples=method.samples,
        mix_rows=method.mixing == "example",
        reward_fn=_reward_fn(method, reward_model, experiment.task.vocabulary),
        advantage=method.advantage,
        microbatches=experiment.batches.microbatches,
        dropout=experiment.student.dropout_rate > 0,
    )  # fmt: skip
    step = dataclasses.replace(step, updates=method.updates_per_rollout)
    if method.replay is None:
        return step
    padding = student.model.special_ids.padding
    return replay.ReplayStep(step, experiment.schedule.train_steps, padding)


def _teacher_logits_fn(method, model, vocabulary):
    settings = method.auxiliary
    if not isinstance(settings, WitnessLoss):
        return step_functions.make_teacher_logits_fn(model)
    if not ends_prompts(vocabulary):
        raise InvalidValue(
            "AUXILIARY_LOSS=@witness.WitnessLoss() joins prompts that end with EOS: use a "
            "model of T5's family"
        )
    ids = tuple(map(tuple, vocabularies.encode_texts(vocabulary, settings.texts)))
    if any(vocabulary.unk_id in text for text in ids):
        raise InvalidValue(
            f"WitnessLoss.template is {settings.template!r}, which has words that the vocabulary "
            "lacks: use others"
        )
    return WitnessTeacher(model, settings, ids, method.samples)


def _loss_fn(method, valid, data_shards):
    loss_fn = _main_loss_fn(method, valid, data_shards)
    if not isinstance(method.auxiliary, WitnessLoss):
        return loss_fn
    return with_witness_loss(
        loss_fn, settings=method.auxiliary, divergence=bound_divergence(method),
        samples=method.samples, temperature=method.temperature, valid=valid,
        data_shards=data_shards,
    )  # fmt: skip


def _main_loss_fn(method, valid, data_shards):
    divergence = bound_divergence(method)
    if rewards_weigh(method):
        return functools.partial(
            losses.reward_and_divergence_loss, alpha=method.alpha, divergence=divergence,
            temperature=method.temperature, valid=valid, policy_loss=method.policy_loss,
            ratio_clip=method.ratio_clip, data_shards=data_shards,
        )  # fmt: skip
    if divergence is None:
        return losses.make_cross_entropy_loss(method.normalisation, data_shards=data_shards)
    return losses.make_divergence_loss(
        divergence, method.normalisation, method.temperature, valid, data_shards=data_shards
    )


def _reward_fn(method, reward_model, vocabulary):
    if not rewards_weigh(method) or rewards_on_host(method):
        return None
    scorer = method.reward.build(vocabulary)

    def reward_fn(params, batch, rollout):
        prompts = batch.encoder_input_tokens
        return scorer.score(reward_model.model, params, prompts, rollout.target_tokens)

    return reward_fn

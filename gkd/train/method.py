"""A method's step: the pure functions that its settings choose."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from gkd.auxiliary_losses.inner_layer import InnerLayerLoss, with_inner_layer_loss
from gkd.auxiliary_losses.witness import WitnessLoss, WitnessTeacher, with_witness_loss
from gkd.configuration.experiment import Experiment, Method
from gkd.decode.sampling import sample
from gkd.distill import (
    losses,
    mixing,
    replay,
    step_functions,
    train_step,
    truncated_teacher,
)
from gkd.distill.divergence_records import DivergenceRecord, record_of
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
      experiment: checked, see `setting_checks.check_method`.
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

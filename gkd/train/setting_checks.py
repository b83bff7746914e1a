"""Checks of an experiment's settings against each other, before anything is read."""

from __future__ import annotations

import os

import jax
import numpy as np

from gkd.auxiliary_losses.witness import WitnessLoss
from gkd.configuration.experiment import Experiment, Method, Teacher
from gkd.distill import advantages, truncated_teacher
from gkd.distill.logits import temperature_pair
from gkd.errors import InvalidValue
from gkd.train.method import (
    bound_divergence,
    needs_teacher,
    student_generates,
    teacher_is_student,
)


def check_experiment(experiment: Experiment) -> None:
    """Checks settings of different objects against each other, before anything is read.

    Raises:
      ValueError: in one line.
    """
    rollout, target = experiment.method.rollout_length, experiment.batches.target_length
    if rollout is not None and rollout > target:
        raise InvalidValue(
            f"ROLLOUT_LENGTH is {rollout} and TARGET_LENGTH {target}: the student samples at most "
            "TARGET_LENGTH tokens; shorten one, or leave ROLLOUT_LENGTH at None"
        )
    first, last = experiment.execution.profile_steps or (1, 1)
    if first > last:
        raise InvalidValue(
            f"PROFILE_STEPS is {experiment.execution.profile_steps}: give the first and the last"
        )
    _check_self_teacher(experiment)
    _check_teacher_differs(experiment)


def _check_self_teacher(experiment: Experiment) -> None:
    """Refuses a TEACHER beside a method whose teacher is the student."""
    teacher, weights = experiment.teacher, experiment.method.teacher_weights
    if weights == "checkpoint":
        return
    for macro, value in (
        ("TEACHER", teacher.checkpoint), ("TEACHER_MODEL", teacher.architecture),
        ("TEACHER_STEP", teacher.step), ("TEACHER_TOP_K_FILE", teacher.top_k_file),
    ):  # fmt: skip
        if value is not None:
            raise InvalidValue(
                f"{macro} is {value!r}, but TEACHER_WEIGHTS is {weights!r}, the student's own: set "
                f"{macro} to None, or TEACHER_WEIGHTS to 'checkpoint'"
            )
    how = {"TEACHER_DTYPE": teacher.dtype, "TEACHER_STACKED": teacher.stacked}
    for macro, value in how.items() if teacher_is_student(experiment) else ():
        if value is not None:
            raise InvalidValue(
                f"{macro} is {value!r}, but the teacher is the student's own model: set {macro} "
                "to None"
            )


def _check_teacher_differs(experiment: Experiment) -> None:
    """Refuses a teacher that is the student at its start: every divergence is then 0.

    It means something where it reads another prompt, holds the student back from a reward, is of
    another step of a run, or has another temperature than the student.
    """
    teacher, method = experiment.teacher, experiment.method
    own_prompts = "teacher_inputs" in (method.training_task or experiment.task).features
    pair = temperature_pair(method.temperature)
    if own_prompts or method.reward is not None or pair.student != pair.teacher:
        return
    if needs_teacher(method) and method.teacher_weights != "checkpoint":
        raise InvalidValue(
            f"TEACHER_WEIGHTS is {method.teacher_weights!r}, and the teacher reads the student's "
            "own prompt: their divergence is 0 at the start, and nothing is learnt; choose a task "
            "with teacher_inputs (teacher_inputs.with_teacher_inputs), or a TEACHER"
        )
    paths = [experiment.student.checkpoint, teacher.checkpoint]
    if None in paths or len({os.path.realpath(path) for path in paths}) > 1:
        return
    if teacher.step is None:
        raise InvalidValue(
            f"TEACHER and STUDENT are both {teacher.checkpoint!r}: their divergence is 0 at the "
            "start, and nothing is learnt; choose another TEACHER, or another of its steps with "
            "TEACHER_STEP"
        )


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

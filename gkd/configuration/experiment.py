"""The objects that describe an experiment: data, student, teacher, method, optimisation, schedule.

Gin files bind them (`experiment.Method.on_policy_fraction = 0.5`), Python code makes them. They
hold values only and import nothing heavy. Every field declares the values that it accepts, and an
object checks its fields when it is made; combinations of fields are checked where they are used,
see `gkd.train.method`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from gkd.configuration import configurable_settings as configurables
from gkd.configuration.setting_values import (
    LARGEST_BATCH,
    LARGEST_SEED,
    LONGEST_SEQUENCE,
    Setting,
    check_call,
    choice,
    flag,
    number,
    sequence,
    text,
    whole,
)
from gkd.metrics.descriptions import best_mode_of
from gkd.step_names import NAMES

LENGTH = whole(1, LONGEST_SEQUENCE)
BATCH = whole(1, LARGEST_BATCH)
WEIGHTS = ("checkpoint", "initial", "current", "average")
SEED = whole(0, LARGEST_SEED)
DTYPE = choice("float32", "bfloat16", none=True)
STEP = whole(0, words=NAMES, none=True)
OPTIONAL_PATH = text(none=True)
ARCHITECTURE = Setting(results=configurables.MODELS, none=True)
TASK = Setting(results=configurables.TASKS)
DEVICES = whole(1, 1_000_000)  # along one axis of the mesh
REWARD = Setting(
    functions=configurables.REWARD_FUNCTIONS, results=configurables.REWARD_RESULTS, none=True
)


def accepts(setting: Setting, default: Any = dataclasses.MISSING) -> Any:
    """Declares a field's accepted values and its default."""
    return dataclasses.field(default=default, metadata={"setting": setting})


def table(kind: type) -> dict[str, Setting]:
    """The accepted values of an object's fields, by name."""
    return {field.name: field.metadata["setting"] for field in dataclasses.fields(kind)}


def _check_fields(self: Any) -> None:
    check_call(table(type(self)), vars(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """The rows of a training step.

    Attributes:
      input_length, target_length: tokens per row; longer texts are truncated and counted.
      size: prompts per step, over all devices and microbatches.
      microbatches: parts that a step is computed in, to save memory.
      split: the task's split to train on.
      length_buckets: treatment of padding: 'parts' encodes a batch's rows in up to four parts, each
        as long as its longest row; 'batches', or lengths of inputs, form batches of rows of similar
        length; None encodes all padding.
    """

    input_length: int = accepts(LENGTH)
    target_length: int = accepts(LENGTH)
    size: int = accepts(BATCH, 32)
    microbatches: int = accepts(BATCH, 1)
    split: str = accepts(text(), "train")
    length_buckets: Any = accepts(
        sequence(LENGTH, 1, words=("parts", "batches"), none=True), "parts"
    )

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Student:
    """The model to train.

    Attributes:
      checkpoint: parameters to start from: a run directory, a Hugging Face directory or a T5X
        checkpoint, which brings its architecture.
      architecture: a `T5Config` (or a T5X module, `t5x_adapter.adapt`) that starts at random; it
        must agree with a checkpoint beside it.
      dtype: dtype of the computation, 'float32' or 'bfloat16'; None is bfloat16 on accelerators,
        float32 on CPU, whatever the architecture's own. Parameters are float32.
      stacked: runs the layers in one scan, which compiles faster; None does so from 8 layers of a
        stack on, but not on CPU, and where the architecture itself does.
      remat: recomputes activations in the backward pass, to save memory; None is the architecture's
        own.
      dropout_rate: in [0, 1), while training; sampling uses none.
      lora: a `gkd.models.lora.LoRA`: adapters of the checkpoint are trained in place of all
        parameters.
    """

    checkpoint: str | None = accepts(OPTIONAL_PATH, None)
    architecture: Any = accepts(ARCHITECTURE, None)
    dtype: str | None = accepts(DTYPE, None)
    stacked: bool | None = accepts(flag(none=True), None)
    remat: bool | None = accepts(flag(none=True), None)
    dropout_rate: float | int = accepts(number(0, below=1), 0.0)
    lora: Any = accepts(Setting(results=configurables.ADAPTERS, none=True), None)

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """The model that scores sequences, or a file of its scores.

    Attributes:
      checkpoint, architecture: as a `Student`'s; the architecture alone suffices for a dry run.
      step: step of a run's checkpoints: a number, 'best', 'newest' (also None) or
        'best_or_newest'.
      dtype: dtype of parameters and computation; None is bfloat16 on accelerators, float32 on CPU.
      stacked: as a `Student`'s.
      top_k_file: cached log-probabilities of the training targets in place of a checkpoint, written
        by `infer --score --top_k_log_probs`.
      top_k_tail: the probability outside of the top k: one 'bucket' more, or none after
        'renormalise'.
    """

    checkpoint: str | None = accepts(OPTIONAL_PATH, None)
    architecture: Any = accepts(ARCHITECTURE, None)
    step: int | str | None = accepts(STEP, None)
    dtype: str | None = accepts(DTYPE, None)
    stacked: bool | None = accepts(flag(none=True), None)
    top_k_file: str | None = accepts(OPTIONAL_PATH, None)
    top_k_tail: str = accepts(choice("bucket", "renormalise"), "bucket")

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """The training objective: the source of the sequences, their scores, and the loss.

    Attributes:
      divergence: a function of `gkd.distill.divergences`; None is cross-entropy on the data (SFT),
        or a reward alone.
      beta: β of `generalized_jsd`, in (0, 1); None for divergences without one.
      on_policy_fraction: λ in [0, 1], the probability that a step trains on the student's samples,
        or a function of the step.
      mixing: 'batch' draws λ's coin per step, 'example' per prompt.
      normalisation: 'sequence' averages each sequence's tokens first (equation 2), 'token' all.
      temperature: divisor of both models' logits in the divergence, or (student's, teacher's).
      samples: completions that the student samples per prompt.
      rollout_length: tokens per completion at most; None is the batch's target length.
      sampling_temperature, sampling_top_k, sampling_top_p: distribution of the student's samples.
      reward: a function of `gkd.metrics.reward_functions`, or a reward model (equation 5); None is
        distillation alone.
      alpha: with a reward, weight of the divergence; the reward has 1 − alpha.
      advantage: baseline that a reward is compared with, see `gkd.distill.advantages`.
      policy_loss: policy gradient of the rewards: 'reinforce', or 'grpo' with importance ratios.
      ratio_clip: bound ε on the distance of those ratios from 1; None does not clip.
      updates_per_rollout: optimizer updates on the same sequences, with 'grpo'.
      reward_model, reward_architecture: checkpoint and architecture of a reward model.
      teacher_weights: the teacher's parameters: of a 'checkpoint' (`Teacher`), or the student's
        own: 'initial' (frozen), 'current', or 'average' (a moving one).
      teacher_decay: decay of the moving average per update, in (0, 1).
      replay: a `gkd.distill.replay.Replay`: samples are trained on more than once.
      auxiliary: a loss of `gkd.auxiliary_losses` beside the policy gradient.
      training_task: rows to train on in place of the task's own, such as a teacher's outputs.
    """

    divergence: Any = accepts(Setting(functions=configurables.DIVERGENCES, none=True), None)
    beta: float | int | None = accepts(number(0, 1, none=True), None)
    on_policy_fraction: Any = accepts(number(0, 1, results=configurables.SCHEDULES), 0.0)
    mixing: str = accepts(choice("batch", "example"), "batch")
    normalisation: str = accepts(choice("sequence", "token"), "sequence")
    temperature: Any = accepts(number(above=0, items=number(above=0), lengths=(2, 2)), 1.0)
    samples: int = accepts(BATCH, 1)
    rollout_length: int | None = accepts(whole(1, LONGEST_SEQUENCE, none=True), None)
    sampling_temperature: float | int = accepts(number(above=0), 1.0)
    sampling_top_k: int = accepts(whole(0), 0)
    sampling_top_p: float | int = accepts(number(above=0, most=1), 1.0)
    reward: Any = accepts(REWARD, None)
    alpha: float | int = accepts(number(0, 1), 1.0)
    advantage: str = accepts(choice("batch", "group", "group_standardised", "none"), "batch")
    policy_loss: str = accepts(choice("reinforce", "grpo"), "reinforce")
    ratio_clip: float | int | None = accepts(number(above=0, none=True), None)
    updates_per_rollout: int = accepts(whole(1, 1000), 1)
    reward_model: str | None = accepts(OPTIONAL_PATH, None)
    reward_architecture: Any = accepts(ARCHITECTURE, None)
    teacher_weights: str = accepts(choice(*WEIGHTS), "checkpoint")
    teacher_decay: float | int = accepts(number(above=0, below=1), 0.999)
    replay: Any = accepts(Setting(results=configurables.REPLAYS, none=True), None)
    auxiliary: Any = accepts(Setting(results=configurables.AUXILIARY_LOSSES, none=True), None)
    training_task: Any = accepts(dataclasses.replace(TASK, none=True), None)

    __post_init__ = _check_fields


def _optional(field: dataclasses.Field) -> tuple[str, Any, Any]:
    setting = dataclasses.replace(field.metadata["setting"], none=True)
    return field.name, Any, accepts(setting, None)


# Single values of a method that macros change (LAMBDA, BETA, …): the fields of `Method`, None where
# the method file's value holds.
MethodChanges = dataclasses.make_dataclass(
    "MethodChanges",
    map(_optional, dataclasses.fields(Method)),
    namespace={"__post_init__": _check_fields, "__module__": __name__},
    frozen=True,
    kw_only=True,
)


def changed(method: Method, changes: Any) -> Method:
    """Returns the method with single values changed.

    Args:
      method: the method of a method file.
      changes: a `MethodChanges`; where it names another divergence, the method's β is dropped.
    """
    given = {name: value for name, value in vars(changes).items() if value is not None}
    if "divergence" in given:
        given.setdefault("beta", None)
    return dataclasses.replace(method, **given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimisation:
    """The optimizer and its learning-rate schedule.

    Attributes:
      learning_rate: value of the plateau between warm-up and cool-down.
      optimizer: `optimizers.adafactor` or `optimizers.adamw`, their other parameters bound in gin;
        None is Adafactor.
      warmup_steps, cooldown_steps: linear ramps from and to 0.
      max_gradient_norm: global norm to clip gradients to; None does not clip.
    """

    learning_rate: float | int = accepts(number(above=0), 3e-4)
    optimizer: Any = accepts(Setting(functions=configurables.OPTIMIZERS, none=True), None)
    warmup_steps: int = accepts(whole(0), 0)
    cooldown_steps: int = accepts(whole(0), 0)
    max_gradient_norm: float | int | None = accepts(number(above=0, none=True), None)

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """The length of a run and what happens when; in steps, an interval of 0 is the end only.

    Attributes:
      train_steps: the step at which the run is complete.
      log_every, evaluate_every, checkpoint_every: intervals.
      keep_last, keep_best: numbers of checkpoints to keep, the newest and the best.
      best_metric, best_mode: evaluation metric that decides which is best, and 'max' or 'min';
        None is 'min' for divergences, perplexity and truncation, else 'max'.
      stop_after_skipped: non-finite updates in a row that end the run.
    """

    train_steps: int = accepts(whole(1))
    log_every: int = accepts(whole(0), 10)
    evaluate_every: int = accepts(whole(0), 0)
    checkpoint_every: int = accepts(whole(0), 1000)
    keep_last: int = accepts(whole(1), 2)
    keep_best: int = accepts(whole(0), 1)
    best_metric: str | None = accepts(text(none=True), None)
    best_mode: str | None = accepts(choice("max", "min", none=True), None)
    stop_after_skipped: int = accepts(whole(1), 10)

    __post_init__ = _check_fields

    @property
    def mode_of_best(self) -> str:
        """'max' or 'min'."""
        return self.best_mode or best_mode_of(self.best_metric)

    def due(self, step: int, every: int) -> bool:
        """Returns whether `step` is a multiple of the interval `every`, or the last step."""
        return step == self.train_steps or (every > 0 and step % every == 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The data to measure models on, and the decoding of their outputs.

    Attributes:
      split: the task's split.
      batch_size: rows per batch; None is the training batch's.
      examples: the first so many rows; None is all.
      sample_rows: rows of the printed table of outputs.
      temperatures: temperatures of sampled outputs, each measured by itself beside the greedy
        ones; `evaluate`.
      samples: outputs per prompt at each temperature; `evaluate`.
      beams: width of a beam search besides, 0 is none; `evaluate`.
      length_penalty: length penalty of the beam search; None is 0.6, as T5X; `evaluate`.
    """

    split: str = accepts(text(), "validation")
    batch_size: int | None = accepts(whole(1, LARGEST_BATCH, none=True), None)
    examples: int | None = accepts(whole(1, none=True), None)
    sample_rows: int = accepts(whole(0), 4)
    temperatures: Any = accepts(number(above=0, items=number(above=0), lengths=(0, 1000)), ())
    samples: int = accepts(BATCH, 1)
    beams: int = accepts(whole(0, LARGEST_BATCH), 0)
    length_penalty: float | int | None = accepts(number(0, none=True), None)

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution:
    """The execution of a launch: nothing here changes a result.

    Attributes:
      model_parallelism: devices along the mesh's model axis; the others are its data axis.
      fully_sharded: splits parameters over the data axis too.
      tensorboard: writes TensorBoard events beside the JSON lines.
      tracker: an experiment tracker that gets all metrics too, or None.
      profile_steps: first and last step of a `jax.profiler` trace, in the run's `profile/`.
      stall_seconds: a step, evaluation or save that takes longer is reported; 0 never.
      time_parts: times sampling and teacher by themselves before the first step.
      allow_changes: continues a run although its method, data or optimisation changed.
    """

    model_parallelism: int = accepts(DEVICES, 1)
    fully_sharded: bool = accepts(flag(), False)
    tensorboard: bool = accepts(flag(), True)
    tracker: str | None = accepts(choice("trackio", "wandb", "mlflow", none=True), None)
    profile_steps: Any = accepts(sequence(whole(1), 2, 2, none=True), None)
    stall_seconds: float | int = accepts(number(0), 600)
    time_parts: bool = accepts(flag(), False)
    allow_changes: bool = accepts(flag(), False)

    __post_init__ = _check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides a run's step, its data and its schedule.

    Attributes:
      task: a `gkd.data.task_spec.TaskSpec` to train and evaluate on.
      seed: PRNG seed of parameters, data order, λ's coin and samples.
      The others: see their classes.
    """

    task: Any
    batches: Batches
    student: Student
    schedule: Schedule
    teacher: Teacher = Teacher()
    method: Method = Method()
    optimisation: Optimisation = Optimisation()
    evaluation: Evaluation = Evaluation()
    execution: Execution = Execution()
    seed: int = 0


OBJECTS = (Batches, Student, Teacher, Method, Optimisation, Schedule, Evaluation, Execution)

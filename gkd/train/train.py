"""The verb `train`: fine-tuning, supervised and on-policy distillation, resumable at any moment."""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from gkd.checkpoints.store import CheckpointStore
from gkd.configuration import setting_values
from gkd.configuration.verb_settings import TRAIN
from gkd.data import pipeline
from gkd.data.offline_teacher import OfflineTeacher
from gkd.data.tasks import TaskSpec
from gkd.distill import optimizers
from gkd.distill.logits import temperature_pair
from gkd.errors import InvalidValue, NotAFolder, StorageError
from gkd.evaluate import evaluation as evaluations
from gkd.evaluate.reward_scoring import load_judge
from gkd.parallel import job_messages, processes
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.runs.lease import run_lease
from gkd.runs.metrics_log import MetricsLog
from gkd.runs.monitor import Monitor
from gkd.runs.run_directory import check_changes, check_model_dir, open_run
from gkd.runs.signals import StopRequest
from gkd.train import memory_bound
from gkd.train.method import Method
from gkd.train.model_flops import useful_flops
from gkd.train.part_times import part_seconds
from gkd.train.step_means import StepMeans
from gkd.train.step_program import StepProgram, abstract_batch, starting_state
from gkd.train.teacher_record import pin_teacher, pinned_teacher
from gkd.train.training_loop import Intervals, TrainingLoop

CHECKPOINTS = "checkpoints"


def train(
    model_dir: str,
    task: TaskSpec,
    input_length: int,
    target_length: int,
    train_steps: int,
    batch_size: int,
    learning_rate: float,
    student_model: Any = None,
    student: str | None = None,
    teacher: str | None = None,
    teacher_model: Any = None,
    divergence: Any = None,
    beta: float | None = None,
    on_policy_fraction: Any = 0.0,
    normalisation: str = "sequence",
    temperature: Any = 1.0,
    samples: int = 1,
    rollout_length: int | None = None,
    mixing: str = "batch",
    sampling_temperature: float = 1.0,
    sampling_top_k: int = 0,
    sampling_top_p: float = 1.0,
    reward: Any = None,
    alpha: float = 1.0,
    advantage: str = "batch",
    reward_model: str | None = None,
    reward_architecture: Any = None,
    replay: Any = None,
    teacher_top_k: str | None = None,
    top_k_tail: str = "bucket",
    optimizer: Callable[..., Any] = optimizers.adafactor,
    warmup_steps: int = 0,
    cooldown_steps: int = 0,
    max_gradient_norm: float | None = None,
    microbatches: int = 1,
    dropout_rate: float = 0.0,
    seed: int = 0,
    train_split: str = "train",
    evaluation_split: str = "validation",
    evaluation_batch_size: int | None = None,
    evaluation_examples: int | None = None,
    evaluate_every: int = 0,
    log_every: int = 10,
    checkpoint_every: int = 1000,
    keep_last: int = 2,
    keep_best: int = 1,
    best_metric: str | None = None,
    best_mode: str = "max",
    stop_after_skipped: int = 10,
    sample_rows: int = 4,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
    student_dtype: str | None = None,
    teacher_dtype: str | None = None,
    student_stacked: bool | None = None,
    teacher_stacked: bool | None = None,
    remat: bool | None = None,
    teacher_step: int | str | None = None,
    tensorboard: bool = True,
    profile_steps: tuple[int, int] | None = None,
    stall_seconds: float | int = 600,
    time_parts: bool = False,
    allow_changes: bool = False,
    dry_run: bool | Callable[[StepProgram], Any] = False,
    devices: list[Any] | None = None,
) -> Any:
    """Trains a student until `train_steps`, from the start or from where its directory stands.

    Args:
      model_dir: the run directory: checkpoints, metrics, configuration. An existing one is resumed.
      task: what to train on.
      input_length, target_length: of a row, in tokens; what is longer is cut and counted.
      train_steps: the step at which the run is complete.
      batch_size: rows of a step, over all devices and microbatches.
      learning_rate: of the plateau.
      student_model: the architecture (a T5Config) of a student that starts at random. Beside a
        checkpoint, which brings its own, it must be the same.
      student: the checkpoint that the student starts from: a run directory, a Hugging Face
        directory or a T5X checkpoint.
      teacher: the teacher's checkpoint, of any of these formats; needed with a divergence.
      teacher_model: as student_model. Both may be T5X modules (`t5x_adapter.adapt`).
      divergence: a function of gkd.distill.divergences; None is cross-entropy on the data (SFT).
      beta: of generalized_jsd, in (0, 1); None with every other divergence.
      on_policy_fraction: λ in [0, 1], or a function of the step.
      normalisation: 'sequence' (the paper's) or 'token'.
      temperature: divides the logits of both models in the divergence, or (student's, teacher's).
      samples: outputs that the student writes for a prompt, which both models encode once.
      rollout_length: the first so many tokens of the student's outputs only; None is target_length.
      mixing: 'batch' tosses λ's coin once a step, 'example' for every prompt.
      sampling_temperature, sampling_top_k, sampling_top_p: of the student's outputs.
      reward: of reward_functions, what an output is worth (equation 5); None is distillation alone.
      alpha: with a reward, the divergence's weight, the reward's being 1 − α.
      advantage: what a reward is compared with, see gkd.distill.advantages.
      reward_model, reward_architecture: the checkpoint of a reward that is a model (entailment).
      replay: a `gkd.distill.replay.Replay`: the student's outputs are learnt from more than once.
      teacher_top_k: what `infer --score --top_k_log_probs` wrote for the training split, instead of
        a teacher.
      top_k_tail: what its other ids' probability becomes: 'bucket' or 'renormalise'.
      optimizer: optimizers.adafactor or optimizers.adamw, with what else they take bound in gin.
      warmup_steps, cooldown_steps: of the learning rate, linear.
      max_gradient_norm: gradients are clipped to this global norm; None does not clip.
      microbatches: parts that a step is run in, to save memory.
      dropout_rate: of the student while it trains (never while it samples).
      seed: of parameters, data order, λ-coin and samples.
      train_split, evaluation_split: names of the task's splits.
      evaluation_batch_size: rows of an evaluation batch; by default the training batch's.
      evaluation_examples: how many rows to evaluate on, the first; None is all.
      evaluate_every, log_every, checkpoint_every: intervals in steps; 0 is only at the end.
      keep_last, keep_best: how many checkpoints to keep, the newest and the best.
      best_metric, best_mode: which evaluation metric says what is best, 'max' or 'min'.
      stop_after_skipped: so many updates in a row that are not finite end the run.
      sample_rows: rows of the table of outputs.
      model_parallelism: devices along the model axis; the others are the data axis.
      fully_sharded: whether parameters are split over the data axis too.
      student_dtype: of the student's computation, 'float32' or 'bfloat16', where not its own; its
        parameters are float32.
      teacher_dtype: of the teacher's parameters and computation; None is bfloat16 on accelerators.
      student_stacked, teacher_stacked: whether to run the layers in one scan (faster compilation).
      remat: whether to recompute the student's activations in the backward pass, to save memory.
      teacher_step: of a teacher that is a run: its newest (None), a number or 'best'.
      tensorboard: whether to write TensorBoard events beside the JSON lines.
      profile_steps: first and last step of a `jax.profiler` trace, in the run's `profile/`.
      stall_seconds: a step, evaluation or save that takes longer is reported; 0 never.
      time_parts: whether to time sampling and teacher by themselves before the first step.
      allow_changes: whether to continue a run although its method, data or optimisation changed.
      dry_run: only trace the step, with the architectures that are named: no checkpoint is read
        where there is one, no data, and nothing is written. A function gets the step's program
        instead; what it returns is returned.
      devices: of the mesh, all by default; others than this machine's only in a dry run.

    Returns:
      The summary that is also written to `summary.json`, a dict; of a dry run, see there.

    Raises:
      ValueError: anything that does not fit together, in one line.
      FloatingPointError: too many updates in a row were not finite.
      Stopped: SIGTERM or Ctrl-C came; everything is saved.
    """
    setting_values.check_call(TRAIN, locals())
    _check_settings(locals())
    check_model_dir(model_dir, TEACHER=teacher, STUDENT=student, REWARD_MODEL=reward_model)
    method = Method(
        divergence, beta, on_policy_fraction, mixing, normalisation, temperature, samples,
        rollout_length,
        {"temperature": sampling_temperature, "top_k": sampling_top_k, "top_p": sampling_top_p},
        reward, alpha, advantage, replay,
        "TEACHER_MODEL" if dry_run and teacher is None and teacher_model else teacher,
        teacher_top_k, top_k_tail,
    )  # fmt: skip
    mesh = meshes.make_mesh(model=model_parallelism, devices=devices)
    rules = meshes.rules_for(fully_sharded)
    meshes.check_batch_divides(batch_size, mesh, microbatches)
    task.check_batch(batch_size)
    run_path = pathlib.Path(model_dir)
    own = run_path.resolve() / CHECKPOINTS
    saved = own.is_dir() and any(path.name.isdigit() for path in own.iterdir())
    resumes = not dry_run and processes.broadcast_from_primary(saved)
    if resumes or (saved and dry_run is True):
        check_changes(model_dir, allow_changes)
    # A run that continues needs its start no more: its own checkpoint brings the architecture.
    source = str(own) if resumes and student is not None else student

    def load(role, architecture, checkpoint, step=None, **ways):
        if dry_run and architecture is not None:
            checkpoint = None
        return model_loading.load_model(
            role, mesh, rules, task, architecture, checkpoint, step, **ways
        )

    learner = load(
        "STUDENT", student_model, source, dtype=student_dtype,
        stacked_layers=student_stacked, remat=remat, with_params=False,
    )  # fmt: skip
    learner = model_loading.with_dropout(learner, dropout_rate)
    expert = None
    if method.scores and teacher_top_k is None:
        is_module = model_loading.is_module(teacher_model)
        expert = load(
            "TEACHER", teacher_model, pinned_teacher(run_path, teacher, resumes), teacher_step,
            stacked_layers=teacher_stacked, with_params=not dry_run,
            **({} if is_module else model_loading.inference_ways(teacher_dtype, mesh)),
        )  # fmt: skip
    judge = load_judge(
        reward, None if dry_run and reward_architecture else reward_model, reward_architecture,
        mesh, rules, task, with_params=not dry_run,
    )  # fmt: skip
    valid = model_loading.shared_valid_ids(learner, expert, task)
    schedule = optimizers.warmup_constant_cooldown(
        learning_rate, warmup_steps, train_steps, cooldown_steps
    )
    transformation = optimizer(learning_rate=schedule, max_norm=max_gradient_norm)
    step = method.make_step(
        learner, expert, judge, transformation, valid, vocabulary=task.vocabulary,
        train_steps=train_steps, microbatches=microbatches, dropout=dropout_rate > 0,
        data_shards=mesh.shape["data"],
    )  # fmt: skip
    lengths = input_length, target_length
    state = starting_state(mesh, learner, transformation, seed, replay, lengths)
    program = StepProgram(
        mesh, rules, method, step, state, learner, expert, judge, task, valid,
        abstract_batch(batch_size, *lengths, with_top_k=teacher_top_k is not None),
        microbatches, train_steps, evaluation_batch_size or batch_size,
    )  # fmt: skip
    if dry_run:
        if callable(dry_run):
            return dry_run(program)
        facts = program.describe()
        print(memory_bound.remark(program), end="", file=sys.stderr)
        return facts
    memory_bound.check_fits(program)
    batches = pipeline.training_batches(
        task, train_split, batch_size, input_length, target_length, seed,
        own_rows=meshes.own_rows(mesh, batch_size),
    )  # fmt: skip
    offline = None
    if teacher_top_k is not None:
        size = learner.config.vocab_size
        offline = OfflineTeacher.read(teacher_top_k, target_length, batches.rows, size)
    evaluation = evaluations.make_evaluation(
        task, evaluation_split, mesh, rules, valid,
        batch_size=evaluation_batch_size or batch_size, input_length=input_length,
        target_length=target_length, max_examples=evaluation_examples, reward=reward, judge=judge,
    )  # fmt: skip
    _check_same_in_all_processes(learner, expert, judge, batches, evaluation)
    intervals = Intervals(train_steps, log_every, evaluate_every, checkpoint_every)
    with run_lease(model_dir) as lease, open_run(model_dir) as run, StopRequest() as stop:

        def record(step):
            run.record(step)
            pin_teacher(run.path, teacher, expert)
            model_loading.save_vocabulary(task.vocabulary, run.path)

        store = CheckpointStore(
            run.path.resolve() / CHECKPOINTS, keep_last, keep_best, best_metric, best_mode,
            description=model_loading.describe(learner.config, task.vocabulary),
        )  # fmt: skip
        restored = store.restore(state.abstract)
        means, logged = StepMeans(), None
        if restored is not None:
            batches.restore(restored.data_state)
            log_state = dict(restored.log_state)
            logged = log_state.pop("position", None)
            means.restore(log_state)
        monitor = Monitor(
            run.path, functools.partial(useful_flops, program), profile_steps, stall_seconds
        )
        with MetricsLog(run.path, tensorboard, logged) as log:
            loop = TrainingLoop(
                intervals=intervals,
                compiled=program.compile(),
                mesh=mesh,
                batches=batches,
                offline_teacher=offline,
                replay=replay,
                student=learner,
                teacher=expert,
                evaluation=evaluation,
                store=store,
                log=log,
                monitor=monitor,
                stop=stop,
                schedule=schedule,
                means=means,
                seed=seed,
                stop_after_skipped=stop_after_skipped,
                sample_rows=sample_rows,
                best_metric=best_metric,
                directory=run.path,
                lease=lease,
                record=record,
                time_parts=functools.partial(part_seconds, program) if time_parts else None,
            )
            try:
                begun = state.make() if restored is None else restored.state
                return loop.run(begun, None if restored is None else restored.step)
            finally:
                store.close()


def _check_settings(given: Mapping[str, Any]) -> None:
    """Refuses settings that do not fit together, before anything is read or compiled."""
    rollout, target = given["rollout_length"], given["target_length"]
    if rollout is not None and rollout > target:
        raise InvalidValue(
            f"ROLLOUT_LENGTH is {rollout} and TARGET_LENGTH {target}: the student writes at most "
            "TARGET_LENGTH tokens; shorten one, or leave ROLLOUT_LENGTH at None"
        )
    first, last = given["profile_steps"] or (1, 1)
    if first > last:
        raise InvalidValue(
            f"PROFILE_STEPS is {given['profile_steps']}: give the first and the last"
        )
    _check_teacher_differs(given)
    if not callable(given["dry_run"]):  # `plan` is of another machine
        _check_writable(given["model_dir"])


def _check_writable(model_dir: str) -> None:
    """Refuses a directory that cannot be written to, before minutes of preparation."""
    path = pathlib.Path(model_dir)
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise NotAFolder(f"MODEL_DIR {path}: {existing} is a file: choose a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"MODEL_DIR {path}: {existing} cannot be written to")


def _check_teacher_differs(given: Mapping[str, Any]) -> None:
    """Refuses a frozen teacher that is the student at its start: every divergence is then 0.

    It means something where it holds the student back from a reward, at another step of the run,
    and at another temperature than the student's.
    """
    names = [given["student"], given["teacher"]]
    if None in names or len({os.path.realpath(name) for name in names}) > 1:
        return
    pair = temperature_pair(given["temperature"])
    same = given["teacher_step"] is None and pair.student == pair.teacher
    if same and given["reward"] is None:
        raise InvalidValue(
            f"TEACHER and STUDENT are both {given['teacher']!r}: their divergence is 0 at the "
            "start, and nothing is learnt; choose another TEACHER, or another of its steps with "
            "TEACHER_STEP"
        )


def _check_same_in_all_processes(learner, expert, judge, batches, evaluation) -> None:
    """Refuses a job whose hosts read different checkpoints or data."""
    texts = "\0".join((*evaluation.examples.inputs, *evaluation.examples.targets))
    models_of = {"STUDENT": learner, "TEACHER": expert, "REWARD_MODEL": judge}
    facts = {name: str(loaded and loaded.checkpoint) for name, loaded in models_of.items()}
    facts["training data"] = batches.state().decode()
    facts["evaluation data"] = hashlib.sha256(texts.encode()).hexdigest()
    job_messages.check_same("checkpoints or data", facts, processes.start_seconds())

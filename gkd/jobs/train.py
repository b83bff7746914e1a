"""The verb `train`: fine-tuning, supervised and on-policy distillation, resumable at any moment."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gkd.checkpoints.store import CheckpointStore
from gkd.data import pipeline
from gkd.data.tasks import TaskSpec
from gkd.decode.sampling import sample
from gkd.distill import losses, optimizers, train_step
from gkd.jobs import evaluation as evaluations
from gkd.jobs import models
from gkd.jobs.metrics_log import MetricsLog
from gkd.jobs.run_directory import open_run
from gkd.jobs.signals import StopRequest
from gkd.jobs.training_loop import TEACHER_FILE, Intervals, TrainingLoop, write_json
from gkd.parallel import mesh as meshes

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
) -> dict[str, Any]:
    """Trains a student until `train_steps`, from the start or from where its directory stands.

    Args:
      model_dir: the run directory: checkpoints, metrics, configuration. An existing one is resumed.
      task: what to train on.
      input_length, target_length: of a row, in tokens; what is longer is cut and counted.
      train_steps: the step at which the run is complete.
      batch_size: rows of a step, over all devices and microbatches.
      learning_rate: of the plateau.
      student_model: the architecture (a T5Config) of a student that starts at random.
      student: the checkpoint that the student starts from instead (it brings its architecture): a
        run directory, a Hugging Face directory or a T5X checkpoint.
      teacher: the teacher's checkpoint, of any of these formats; needed with a divergence.
      teacher_model: None, or a T5X module (`t5x_adapter.adapt`) to run the teacher with; a
        student_model may be one too.
      divergence: a function of gkd.distill.divergences; None is cross-entropy on the data (SFT).
      beta: of generalized_jsd, in (0, 1); None with every other divergence.
      on_policy_fraction: λ in [0, 1], or a function of the step.
      normalisation: 'sequence' (the paper's) or 'token'.
      temperature: divides the logits of both models in the divergence, or (student's, teacher's).
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

    Returns:
      The summary that is also written to `summary.json`.

    Raises:
      ValueError: anything that does not fit together, in one line.
      FloatingPointError: too many updates in a row were not finite.
      Stopped: SIGTERM or Ctrl-C came; everything is saved.
    """
    _check_settings(seed, microbatches, temperature, dropout_rate)
    divergence = _bound_divergence(divergence, beta, teacher, on_policy_fraction)
    mesh = meshes.make_mesh(model=model_parallelism)
    rules = meshes.rules_for(fully_sharded)
    meshes.check_batch_divides(batch_size, mesh, microbatches)
    own = pathlib.Path(model_dir).resolve() / CHECKPOINTS
    resumes = own.is_dir() and any(path.name.isdigit() for path in own.iterdir())
    # A run that continues needs its start no more: its own checkpoint brings the architecture.
    source = str(own) if resumes and student is not None else student
    learner = models.load_model(
        "STUDENT", mesh, rules, task, student_model, source, dtype=student_dtype,
        stacked_layers=student_stacked, remat=remat, with_params=False,
    )  # fmt: skip
    learner = models.with_dropout(learner, dropout_rate)
    expert = None
    if divergence is not None:
        pinned = _pinned_teacher(pathlib.Path(model_dir), teacher, resumes)
        teacher_dtype = None if teacher_model else teacher_dtype or models.inference_dtype()
        expert = models.load_model(
            "TEACHER", mesh, rules, task, teacher_model, pinned, teacher_step,
            dtype=teacher_dtype, params_dtype=teacher_dtype, stacked_layers=teacher_stacked,
        )  # fmt: skip
    valid = models.shared_valid_ids(learner, expert, task)
    schedule = optimizers.warmup_constant_cooldown(
        learning_rate, warmup_steps, train_steps, cooldown_steps
    )
    transformation = optimizer(learning_rate=schedule, max_norm=max_gradient_norm)
    step = _make_step(
        learner, expert, transformation, valid, divergence, normalisation, temperature,
        on_policy_fraction, microbatches, dropout_rate > 0, mesh,
    )  # fmt: skip
    shard = (jax.process_index(), jax.process_count())
    batches = pipeline.training_batches(
        task, train_split, batch_size, input_length, target_length, seed, shard=shard
    )
    evaluation = evaluations.make_evaluation(
        task, evaluation_split, mesh, rules, valid,
        batch_size=evaluation_batch_size or batch_size, input_length=input_length,
        target_length=target_length, max_examples=evaluation_examples,
    )  # fmt: skip
    intervals = Intervals(train_steps, log_every, evaluate_every, checkpoint_every)
    with open_run(model_dir) as run, StopRequest() as stop:
        _pin_teacher(run.path, teacher, expert)
        models.save_vocabulary(task.vocabulary, run.path)
        store = CheckpointStore(
            run.path.resolve() / CHECKPOINTS, keep_last, keep_best, best_metric, best_mode,
            description=models.describe(learner.config, task.vocabulary),
        )  # fmt: skip
        state, shardings, abstract = _initial_state(mesh, learner, transformation, seed)
        restored = store.restore(abstract)
        if restored is None:
            state = state()
        else:
            state = restored.state
            batches.restore(restored.data_state)
        with MetricsLog(run.path, tensorboard) as log:
            loop = TrainingLoop(
                intervals=intervals,
                compiled=meshes.compile_step(
                    step, mesh, shardings, None if expert is None else expert.shardings, rules
                ),
                mesh=mesh,
                batches=batches,
                student=learner,
                teacher=expert,
                evaluation=evaluation,
                store=store,
                log=log,
                stop=stop,
                schedule=schedule,
                seed=seed,
                stop_after_skipped=stop_after_skipped,
                sample_rows=sample_rows,
                best_metric=best_metric,
                directory=run.path,
            )
            run.write_operative_config()
            try:
                return loop.run(state, None if restored is None else restored.step)
            finally:
                store.close()


def _check_settings(seed, microbatches, temperature, dropout_rate) -> None:
    """Refuses what no run can mean, before anything is read or compiled."""
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes: a run is one host with all its devices for now"
        )
    if seed < 0:
        raise ValueError(f"SEED is {seed}: use 0 or more")
    if microbatches < 1:
        raise ValueError(f"MICROBATCHES is {microbatches}: use 1 or more")
    temperatures = temperature if isinstance(temperature, tuple | list) else (temperature,)
    if min(temperatures) <= 0:
        raise ValueError(f"TEMPERATURE is {temperature}: the divergence needs more than 0")
    if not 0 <= dropout_rate < 1:
        raise ValueError(f"DROPOUT_RATE is {dropout_rate}: use a share in [0, 1)")


def _bound_divergence(divergence, beta, teacher, on_policy_fraction):
    """The divergence with β bound; refuses combinations that would silently train another thing."""
    if divergence is None:
        if teacher is not None:
            raise ValueError("TEACHER is set but DIVERGENCE is not: SFT would ignore the teacher")
        if on_policy_fraction != 0:
            raise ValueError(
                f"fine-tuning on the student's own samples (λ={on_policy_fraction}) teaches "
                "nothing: set DIVERGENCE and TEACHER, or λ to 0"
            )
        return None
    if not callable(divergence):
        raise ValueError(f"DIVERGENCE is {divergence!r}: write @divergences.forward_kl, without ''")
    if teacher is None:
        raise ValueError("a divergence needs a teacher: set TEACHER to a checkpoint")
    needs_beta = divergence.__name__ == "generalized_jsd"
    if needs_beta != (beta is not None):
        raise ValueError(
            f"BETA is {beta} and DIVERGENCE {divergence.__name__}: generalized_jsd needs a BETA in "
            "(0, 1), no other divergence has one"
        )
    if needs_beta:
        divergence = functools.partial(divergence, beta=beta)
    logits = jax.ShapeDtypeStruct((1, 2), np.float32)
    jax.eval_shape(divergence, logits, logits)  # a β or α out of range is said now
    return divergence


def _pinned_teacher(directory, teacher, resumes) -> str:
    """The teacher's step folder: on a resume the one the run began with, else the newest."""
    path = directory / TEACHER_FILE
    if resumes and path.exists():
        saved = json.loads(path.read_text())
        if saved["teacher"] == teacher:
            return saved["step_folder"]
    return teacher


def _pin_teacher(directory, teacher, expert) -> None:
    """Records which step of the teacher's run this run learns from."""
    if expert is not None:
        write_json(directory / TEACHER_FILE, {"teacher": teacher, "step_folder": expert.checkpoint})


def _make_step(
    learner, expert, optimizer, valid, divergence, normalisation, temperature,
    on_policy_fraction, microbatches, dropout, mesh,
):  # fmt: skip
    """The pure step of this run."""
    shards = mesh.shape["data"]
    if divergence is None:
        loss = losses.make_cross_entropy_loss(normalisation, data_shards=shards)
    else:
        loss = losses.make_divergence_loss(
            divergence, normalisation, temperature, valid, data_shards=shards
        )
    return train_step.make_train_step(
        learner.model,
        optimizer,
        divergence_loss_fn=loss,
        teacher_logits_fn=expert and train_step.make_teacher_logits_fn(expert.model),
        sample_fn=train_step.make_sample_fn(learner.model, sample, valid),
        on_policy_fraction=on_policy_fraction,
        microbatches=microbatches,
        dropout=dropout,
    ).step


def _initial_state(mesh, learner, optimizer, seed):
    """(a function that makes the state at step 0, its shardings, its abstract values)."""
    shapes = jax.eval_shape(
        lambda: train_step.init_state(models.random_params(learner, seed), optimizer, seed)
    )
    shardings = meshes.shardings_like(mesh, shapes, shapes.params, learner.shardings)

    def start():
        params = models.initial_params(learner, seed)
        init = jax.jit(
            lambda params: train_step.init_state(params, optimizer, seed), out_shardings=shardings
        )
        return init(params)

    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )
    return start, shardings, abstract

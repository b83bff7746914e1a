"""The verb `train`: fine-tuning, supervised and on-policy distillation, resumable at any moment."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import sys
from typing import Any

from gkd.checkpoints import folders
from gkd.checkpoints.params import read_description
from gkd.checkpoints.saved_adapters import SavedAdapters
from gkd.checkpoints.store import CheckpointStore
from gkd.configuration import setting_values
from gkd.configuration.experiment import (
    Batches,
    Evaluation,
    Execution,
    Experiment,
    Method,
    Optimisation,
    Schedule,
    Student,
    Teacher,
)
from gkd.configuration.verb_settings import TRAIN
from gkd.data import pipeline
from gkd.data.offline_teacher import OfflineTeacher
from gkd.data.tasks import TaskSpec
from gkd.errors import NotAFolder, StorageError
from gkd.evaluate import evaluation as evaluations
from gkd.parallel import job_messages, processes
from gkd.parallel import mesh as meshes
from gkd.runs import checkpoint_vocabulary, model_loading
from gkd.runs.lease import run_lease
from gkd.runs.metrics_log import MetricsLog
from gkd.runs.monitor import Monitor
from gkd.runs.run_directory import check_changes, check_model_dir, check_nothing_lost, open_run
from gkd.runs.signals import StopRequest
from gkd.runs.trackers import tracker_of
from gkd.train import adapters, memory_bound
from gkd.train.batch_layout import batch_buckets, part_sizes
from gkd.train.build import build_step_program
from gkd.train.method import rewards_weigh, teacher_is_student
from gkd.train.model_flops import useful_flops
from gkd.train.part_times import part_seconds
from gkd.train.setting_checks import check_experiment
from gkd.train.step_means import StepMeans
from gkd.train.step_program import StepProgram
from gkd.train.teacher_record import pin_teacher, pinned_teacher
from gkd.train.training_loop import TrainingLoop

CHECKPOINTS = "checkpoints"
_LOG = logging.getLogger(__name__)


def train(
    model_dir: str,
    task: TaskSpec,
    batches: Batches,
    student: Student,
    schedule: Schedule,
    teacher: Teacher = Teacher(),  # noqa: B008 (frozen)
    method: Method = Method(),  # noqa: B008
    optimisation: Optimisation = Optimisation(),  # noqa: B008
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a student until the schedule's last step, from the start or from its last checkpoint.

    Args:
      model_dir: the run directory: checkpoints, metrics, configuration. An existing one is resumed.
      task: the task to train and evaluate on.
      batches, student, schedule, teacher, method, optimisation, evaluation, execution: see their
        classes in `gkd.configuration.experiment`.
      seed: PRNG seed of parameters, data order, λ's coin and samples.
      dry_run: traces the step and stops: no checkpoint is read of a model whose architecture is
        given, no data, and nothing is written.

    Returns:
      The summary that is also written to `summary.json`; of a dry run, the models' sizes and the
      names of the step's metrics.

    Raises:
      ValueError: anything that does not fit together, in one line.
      FloatingPointError: too many updates in a row were not finite.
      Stopped: SIGTERM or Ctrl-C came; everything is saved.
    """
    setting_values.check_call(TRAIN, locals())
    experiment = Experiment(
        task=task, batches=batches, student=student, schedule=schedule, teacher=teacher,
        method=method, optimisation=optimisation, evaluation=evaluation, execution=execution,
        seed=seed,
    )  # fmt: skip
    check_experiment(experiment)
    if method.reward is not None and not rewards_weigh(method):
        _LOG.warning("ALPHA is 1: REWARD weighs nothing in the loss, evaluations alone measure it")
    _check_writable(model_dir)
    check_model_dir(
        model_dir, TEACHER=teacher.checkpoint, STUDENT=student.checkpoint,
        REWARD_MODEL=method.reward_model,
    )  # fmt: skip
    directory = pathlib.Path(model_dir)
    has_checkpoint = _has_checkpoint(directory)
    if dry_run:
        if has_checkpoint:
            check_changes(model_dir, execution.allow_changes)
        program = build_step_program(experiment, from_shapes=True)
        facts = program.describe()
        print(memory_bound.remark(program), end="", file=sys.stderr)
        return facts
    resumes = processes.broadcast_from_primary(has_checkpoint)
    if resumes:
        check_changes(model_dir, execution.allow_changes)
    else:
        check_nothing_lost(model_dir)
    program = build_step_program(_continued(experiment, directory, resumes))
    if resumes and student.lora is not None:
        adapters.check_base(directory, program.student, program.base_checksums)
    memory_bound.check_fits(program)
    return _launch(program, directory, (_named_teacher(experiment), teacher.step))


def _check_writable(model_dir: str) -> None:
    """Refuses a directory that cannot be written to, before minutes of preparation."""
    path = pathlib.Path(model_dir)
    existing = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise NotAFolder(f"MODEL_DIR {path}: {existing} is a file: choose a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise StorageError(f"MODEL_DIR {path}: {existing} cannot be written to")


def _has_checkpoint(directory: pathlib.Path) -> bool:
    folder = directory.resolve() / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def _continued(experiment: Experiment, directory: pathlib.Path, resumes: bool) -> Experiment:
    """The experiment of this launch: a resumed run reads its own student, and its first teacher."""
    student, teacher = experiment.student, experiment.teacher
    named = _named_teacher(experiment)
    if named is not None:
        checkpoint, step = pinned_teacher(directory, named, teacher.step, resumes)
        teacher = dataclasses.replace(teacher, checkpoint=checkpoint, step=step)
    if resumes and student.lora is not None:
        base = adapters.base_of(directory, student.lora)
        student = dataclasses.replace(student, checkpoint=base)
    elif resumes and student.checkpoint is not None:
        # The run's own checkpoint brings the architecture; the start may be gone.
        student = dataclasses.replace(student, checkpoint=str(directory.resolve() / CHECKPOINTS))
    return dataclasses.replace(experiment, student=student, teacher=teacher)


def _named_teacher(experiment: Experiment) -> str | None:
    """The checkpoint of the teacher as the user named it; the student's where it is the start."""
    if teacher_is_student(experiment):
        return None
    initial = experiment.method.teacher_weights == "initial"
    return experiment.student.checkpoint if initial else experiment.teacher.checkpoint


def _training_data(program: StepProgram):
    """The batches of this process's rows, and the teacher's scores where a file caches them."""
    experiment, task = program.experiment, program.task
    batches, (buckets, buckets_targets) = experiment.batches, batch_buckets(experiment)
    rows = pipeline.training_batches(
        task, batches.split, batches.size, batches.input_length, batches.target_length,
        experiment.seed, own_rows=meshes.own_rows(program.mesh, batches.size),
        buckets=buckets, buckets_targets=buckets_targets, part_sizes=part_sizes(program),
    )  # fmt: skip
    offline, file = None, experiment.teacher.top_k_file
    if file is not None:
        size = program.student.config.vocab_size
        padding = task.vocabulary.pad_id
        offline = OfflineTeacher.read(file, batches.target_length, rows.rows, size, padding)
    return rows, offline


def _evaluation(program: StepProgram) -> evaluations.Evaluation:
    experiment = program.experiment
    return evaluations.make_evaluation(
        program.task, experiment.evaluation.split, program.mesh, program.valid,
        batch_size=program.evaluation_rows, input_length=experiment.batches.input_length,
        target_length=experiment.batches.target_length,
        max_examples=experiment.evaluation.examples, reward=experiment.method.reward,
        reward_model=program.reward_model,
    )  # fmt: skip


def _launch(
    program: StepProgram, directory: pathlib.Path, teacher: tuple[str | None, int | str | None]
) -> dict[str, Any]:
    """Runs the training loop on the run directory; returns the summary.

    Args:
      program: the step, built.
      directory: the run directory.
      teacher: the teacher's checkpoint and step as the user named them.
    """
    experiment = program.experiment
    schedule, execution = experiment.schedule, experiment.execution
    batches, offline = _training_data(program)
    evaluation = _evaluation(program)
    _check_same_in_all_processes(program, batches, evaluation)
    task = program.task
    with run_lease(directory) as lease, open_run(directory) as run, StopRequest() as stop:

        def record(step):
            run.record(step, _checkpoints(program), _digests(program))
            pin_teacher(run.path, *teacher, program.frozen_teacher)
            _keep_what_is_read_again(program, run.path)
            checkpoint_vocabulary.save_vocabulary(task.vocabulary, run.path)

        store = CheckpointStore(
            run.path.resolve() / CHECKPOINTS, schedule.keep_last, schedule.keep_best,
            schedule.best_metric, schedule.mode_of_best,
            description=_description(program, run.path),
        )  # fmt: skip
        restored = store.restore(program.state.abstract)
        means, position = StepMeans(), None
        if restored is not None:
            if experiment.student.dtype is None:
                _warn_of_another_dtype(run.path, program.student.config.dtype)
            batches.restore(restored.data_state)
            log_state = dict(restored.log_state)
            position = log_state.pop("position", None)
            means.restore(log_state)
        monitor = Monitor(
            run.path, functools.partial(useful_flops, program), execution.profile_steps,
            execution.stall_seconds,
        )  # fmt: skip
        tracker = tracker_of(execution.tracker, run)
        with MetricsLog(run.path, execution.tensorboard, position, tracker) as log:
            loop = TrainingLoop(
                program=program,
                batches=batches,
                offline_teacher=offline,
                evaluation=evaluation,
                store=store,
                log=log,
                monitor=monitor,
                stop=stop,
                means=means,
                directory=run.path,
                lease=lease,
                record=record,
                time_parts=functools.partial(part_seconds, program)
                if execution.time_parts
                else None,
            )
            try:
                state = program.state.make() if restored is None else restored.state
                return loop.run(state, None if restored is None else restored.step)
            finally:
                store.close()


def _warn_of_another_dtype(directory: pathlib.Path, dtype: str) -> None:
    """Says where a resumed run computes in another dtype because it is on other devices."""
    before = read_description(directory).get("model", {}).get("dtype", dtype)
    if before != dtype and processes.is_primary_process():
        _LOG.warning(
            "the student of %s has been computed in %s, and from here on is in %s, the default of "
            "these devices: STUDENT_DTYPE=%r with ALLOW_CHANGES=True keeps it",
            directory, before, dtype, before,
        )  # fmt: skip


def _keep_what_is_read_again(program: StepProgram, directory: pathlib.Path) -> None:
    """Keeps the steps of other runs that a resume needs: the teacher's, and the adapters' base."""
    base = program.student if program.base is not None else None
    for loaded in (base, program.frozen_teacher):
        if loaded is not None and loaded.opened is not None and processes.is_primary_process():
            folders.mark_in_use(loaded.opened.path, directory.resolve())


def _description(program: StepProgram, directory: pathlib.Path) -> dict[str, Any]:
    """The description of the student, saved with every step."""
    student, lora = program.student, program.experiment.student.lora
    described = model_loading.describe(student.config, program.task.vocabulary)
    if lora is None:
        return described
    saved = SavedAdapters.of_base(lora, student.opened, program.base_checksums, directory)
    return {**described, "adapters": saved.describe()}


def _check_same_in_all_processes(program: StepProgram, batches, evaluation) -> None:
    """Refuses a job whose hosts read different checkpoints or data."""
    texts = "\0".join((*evaluation.examples.inputs, *evaluation.examples.targets))
    facts = {role: str(name) for role, name in _checkpoints(program).items()}
    facts["training data"] = batches.state().decode()
    facts["evaluation data"] = hashlib.sha256(texts.encode()).hexdigest()
    job_messages.check_same("checkpoints or data", facts, processes.start_seconds(os.environ))


def _checkpoints(program: StepProgram) -> dict[str, str | None]:
    """The names of the checkpoints that were opened, by role."""
    return {role: loaded and loaded.checkpoint for role, loaded in _models(program).items()}


def _digests(program: StepProgram) -> dict[str, str | None]:
    """The identities of these checkpoints."""
    return {role: loaded and loaded.digest for role, loaded in _models(program).items()}


def _models(program: StepProgram) -> dict[str, model_loading.LoadedModel | None]:
    return {
        "STUDENT": program.student,
        "TEACHER": program.teacher,
        "REWARD_MODEL": program.reward_model,
    }

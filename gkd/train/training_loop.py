"""The loop of a training run: steps, logs, evaluates, saves, and stops when asked to."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gkd.checkpoints.store import CheckpointStore
from gkd.data import pipeline
from gkd.data.offline_teacher import OfflineTeacher
from gkd.distill import replay
from gkd.distill.types import TopK
from gkd.errors import InvalidValue, NotFinite
from gkd.evaluate import evaluation as evaluations
from gkd.files.atomic_files import write_json
from gkd.parallel import mesh as meshes
from gkd.parallel import processes
from gkd.runs.compilations import Compilations
from gkd.runs.lease import Lease
from gkd.runs.metrics_log import METRICS_FILE, MetricsLog, read_metrics
from gkd.runs.monitor import Monitor, described
from gkd.runs.progress import Progress
from gkd.runs.run_directory import (
    SUMMARY_FILE,
    TEACHER_EVALUATION_FILE,
    current_bindings,
    read_launches,
    read_or_mend,
    step_spans,
)
from gkd.runs.signals import Stopped, StopRequest
from gkd.runs.tables import markdown_table
from gkd.train import soundness
from gkd.train.evaluation_lines import Best, end_line, evaluation_line, start_line
from gkd.train.step_means import StepMeans, steps_updated
from gkd.train.step_program import StepProgram
from gkd.train.teacher_record import is_measured


@dataclasses.dataclass
class TrainingLoop:
    """One launch of a run: what it steps, measures and saves with."""

    program: StepProgram
    batches: pipeline.TrainingBatches
    offline_teacher: OfflineTeacher | None
    evaluation: evaluations.Evaluation
    store: CheckpointStore
    log: MetricsLog
    monitor: Monitor
    stop: StopRequest
    means: StepMeans
    directory: pathlib.Path
    lease: Lease
    record: Callable[[int], None]
    time_parts: Callable[..., dict[str, float]] | None = None

    def __post_init__(self):
        program = self.program
        self.schedule, self.mesh = program.experiment.schedule, program.mesh
        self.student, self.teacher = program.student, program.teacher
        self.replay = program.method.replay
        self.compiled = program.compile()
        self._key = evaluations.evaluation_key(program.experiment.seed)
        self._generate = self.evaluation.generator(self.student)
        self._meter = None
        if self.teacher is not None:
            self._meter = self.evaluation.divergences(self.student, self.teacher)
        self._seconds: list[float] = []
        self._clock: float | None = None
        self._speed = ""
        self._last_evaluation: dict[str, float] = {}
        self._compilations = Compilations()
        self._agreement = processes.Agreement(self.mesh)
        self._stops = False
        self._shapes: dict[tuple, Any] = {}  # of the batches so far, as `Batch`es of shapes

    def run(self, state: Any, restored_step: int | None) -> dict[str, Any]:
        """Steps until the end, a signal, or too many updates that are not finite."""
        first, total = restored_step or 0, self.schedule.train_steps
        if first > total:
            raise InvalidValue(
                f"TRAIN_STEPS is {total}, but {self.directory} is at step {first}: use {first} or "
                "more"
            )
        # A fresh start writes everything again, also what it measured before its first step.
        self.log.truncate_after(-1 if restored_step is None else first)
        self._best = Best(self.schedule.best_metric, self.schedule.mode_of_best)
        logged = (self.directory / METRICS_FILE).exists() and processes.is_primary_process()
        if restored_step is not None and logged:
            self._best.add_rows(read_metrics(self.directory))
        with self.monitor, Progress("train", total, first) as self._progress:
            self._progress.print(start_line(self.directory, first, total))
            self._report_cuts()
            self._teacher_texts = self._evaluate_teacher(first if restored_step is None else None)
            if restored_step is None:
                state = self._adapted(state, self._evaluate(state, 0))
            else:
                self._progress.print(f"resumed at step {first} of {total}")
            pending = None
            for number in range(first + 1, total + 1):
                host = next(self.batches)
                batch = meshes.place_batch(self._host_batch(host), self.mesh)
                frozen = self.program.frozen_teacher and self.program.frozen_teacher.params
                if self.time_parts is not None and number == first + 1:
                    self._time_parts(first, state, self.program.teacher_params(state), batch)
                self.monitor.begins("step", number)
                shapes = _shapes_of(batch)
                if shapes not in self._shapes:  # compiles, which is not to count as a step's time
                    self._report(pending)
                    pending, self._clock = None, None
                    self._add_shapes(shapes, batch)
                with self._compilations.of(f"step {shapes}"):
                    state, metrics = self.compiled(state, frozen, batch)
                self.lease.check()
                if number == first + 1:  # nothing refuses any more
                    self.record(first)
                # The step before is read while this one runs.
                self._report(pending)
                pending = (number, metrics, host, shapes)
                self._stops = self._agreement.poll(self.stop.requested)
                if self._pauses_after(number) or self._stops:
                    self._report(pending)
                    pending = None
                    state = self._pause(state, number)
        return self._finish(state)

    def _add_shapes(self, shapes, batch):
        """Announces the compilation of the step for batches of new lengths."""
        inputs, targets = batch.encoder_input_tokens.shape[1], batch.decoder_target_tokens.shape[1]
        if batch.input_parts is not None:
            inputs = ", ".join(map(str, batch.input_parts.lengths))
        lengths = f", inputs of {inputs} and targets of {targets} tokens" if self._shapes else ""
        self._progress.print(f"compiling the step{lengths}")
        self._shapes[shapes] = jax.eval_shape(lambda batch: batch, batch)

    def _time_parts(self, step, *arguments):
        self.monitor.begins("timing of a step's parts before step", step + 1)
        parts = self.time_parts(*arguments)
        self.monitor.write_parts(step, parts)
        named = [f"{name.partition('_')[0]} {seconds:.3g} s" for name, seconds in parts.items()]
        self._progress.print(f"a step's parts by themselves: {', '.join(named)}")

    def _host_batch(self, host):
        batch = evaluations.host_batch(host)
        if self.offline_teacher is None:
            return batch
        known = self.offline_teacher.rows(host["rows"], host["decoder_target_tokens"])
        return batch.replace(teacher_top_k=TopK(*known))

    def _adapted(self, state, measured):
        """The state after an evaluation, which a replay's share of the student follows."""
        if self.replay is None:
            return state
        if self.replay.metric not in measured:
            raise InvalidValue(
                f"the replay follows {self.replay.metric!r}, measured are "
                f"{', '.join(sorted(measured))}: choose one of them"
            )
        memory = replay.adapt(self.replay, state.replay, measured[self.replay.metric])
        places = jax.tree.map(lambda leaf: leaf.sharding, state.replay)
        return state.replace(replay=jax.device_put(memory, places))

    def _pauses_after(self, number):
        every = (self.schedule.evaluate_every, self.schedule.checkpoint_every)
        return any(self.schedule.due(number, interval) for interval in every)

    def _pause(self, state, number):
        """Evaluates and saves where it is time to, and ends the launch where a signal asks.

        Returns:
          The state to go on with.
        """
        self.lease.check()
        self.monitor.begins("evaluation or checkpoint after step", number)
        stops = self._stops and number < self.schedule.train_steps
        measured = {}
        if self.schedule.due(number, self.schedule.evaluate_every):
            measured = self._evaluate(state, number)
            state = self._adapted(state, measured)
        # What was evaluated is saved, so that the best can be kept.
        if measured or stops or self.schedule.due(number, self.schedule.checkpoint_every):
            self._save(state, number, measured)
        if stops:
            self.store.wait()
            saved = self.store.latest_step()
            raise Stopped(
                f"{self.stop.signal_name or 'another process'} at step {number}: "
                f"{'nothing is saved yet' if saved is None else f'saved up to step {saved}'} in "
                f"{self.directory}; the same command continues"
            )
        self._clock = None
        self._progress.pause_ended()
        return state

    def _save(self, state, number, measured):
        """Saves, but not from a streak of skipped updates: it must not displace the last good."""
        if int(state.skipped_in_a_row) > 1:
            self._progress.print(f"step {number}: not saved, its updates are not finite")
            return
        if not soundness.all_finite(state.params):
            raise NotFinite(
                f"parameters are not finite after step {number}, which is not saved: lower "
                "LEARNING_RATE, or clip with MAX_GRADIENT_NORM"
            )
        self.lease.check()
        self.log.flush()
        log_state = self.means.state() | {"position": self.log.position()}
        self.store.save(number, state, self.batches.state(), measured, log_state)

    def _report(self, pending):
        """Writes a step's metrics; waits for the step, so the loop is one step ahead of it."""
        if pending is None:
            return
        number, metrics, host, shapes = pending
        pairs = jax.device_get(metrics)
        self.means.add({f"train/{name}": pair for name, pair in pairs.items()})
        counts = {name: host[name] for name in host if name.endswith(("_cut", "_examples"))}
        self.means.add({f"data/{name}": (count, 1) for name, count in counts.items()})
        self.means.add({"data/padding": (host["padding"], host["positions"])})
        tokens = int(pairs["target_length"][0])
        now = time.monotonic()
        seconds = None if self._clock is None else now - self._clock
        if seconds is not None:
            self._seconds.append(seconds)
        self._clock = now
        self.monitor.step_ended(number, seconds, tokens, self._shapes[shapes])
        if self.schedule.due(number, self.schedule.log_every):
            sampled_length = self.means.sampled_length()
            values = self.means.take()
            done = steps_updated(number, pairs, self.program.method.updates_per_rollout)
            values["train/learning_rate"] = float(self.program.learning_rate(done))
            self.log.write(number, values)
            row = self.monitor.write(number, sampled_length)
            self.log.write_events(number, {f"speed/{key}": row[key] for key in row})
            self._speed = described(row) or self._speed
        loss, weight = map(float, pairs["loss"])
        self._progress.update(number, tokens, self._speed, loss=loss / max(weight, 1e-30))
        streak = int(pairs["skipped_in_a_row"][0])
        if streak >= self.schedule.stop_after_skipped:
            saved = self.store.latest_step()
            kept = f"checkpoint {saved} in {self.directory} is kept" if saved else "none was saved"
            raise NotFinite(
                f"loss or gradient was not finite in {streak} updates in a row, up to step "
                f"{number}: {kept}; {self._remedy(pairs, number, host)}"
            )
        if streak and number == self.schedule.train_steps:
            raise NotFinite(
                f"loss or gradient was not finite in the last {streak} updates, up to step "
                f"{number}, the last: the run is not complete; {self._remedy(pairs, number, host)}"
            )

    def _remedy(self, metrics, number, host):
        batch = meshes.place_batch(self._host_batch(host), self.mesh)
        return soundness.remedy(metrics, number, self.program.frozen_teacher, batch)

    def _evaluate(self, state, number, write=True) -> dict[str, float]:
        """Scores the student's outputs, and its divergences from the teacher on its own samples."""
        rows = len(self.evaluation.examples.inputs)
        self._progress.print(f"evaluating {rows} rows at step {number}")
        with self._compilations.of("evaluation"):
            measured, texts = self._measure(state, number)
        if self.schedule.best_metric is not None and self.schedule.best_metric not in measured:
            raise InvalidValue(
                f"BEST_METRIC is {self.schedule.best_metric!r}, measured are "
                f"{', '.join(sorted(measured))}: choose one of them, or None"
            )
        outputs = {"student": texts}
        if self._teacher_texts:
            outputs["teacher"] = self._teacher_texts
        self._table = self.evaluation.sample_table(
            outputs, self.program.experiment.evaluation.sample_rows
        )
        if write:
            named = {f"evaluation/{name}": value for name, value in measured.items()}
            self.log.write(number, named)
            self.log.write_texts(number, f"samples/{self.evaluation.task.name}", self._table)
        self._best.add(number, measured)
        self._progress.print(evaluation_line(f"step {number}", measured, self._best))
        self._last_evaluation = measured
        return measured

    def _measure(self, state, number):
        params = self.program.student_params(state)
        generated = self._generate(params)
        soundness.check_outputs(generated.records, number)
        measured = dict(generated.metrics)
        if self._meter is not None:
            key = jax.random.fold_in(self._key, number)
            teacher_params = self.program.teacher_params(state)
            measured |= self._meter(params, teacher_params, key).metrics
        return measured, generated.texts

    def _evaluate_teacher(self, step) -> list[str]:
        """Scores the teacher once a run; returns its outputs for the table of samples.

        Args:
          step: 0 for a fresh start, None where the run is resumed and its row already written.
        """
        if self.program.frozen_teacher is None:
            return []
        path = self.directory / TEACHER_EVALUATION_FILE
        about = {
            "teacher": self.teacher.checkpoint,
            "digest": self.teacher.digest,
            "dtype": self.teacher.config.dtype,
            "evaluation": self.evaluation.fingerprint(),
        }
        kinds = {"about": dict, "metrics": dict, "outputs": list}
        saved, bindings = {}, current_bindings()
        if processes.is_primary_process():
            saved = read_or_mend(path, kinds, self._progress.print)
        if processes.broadcast_from_primary(not is_measured(saved, about, bindings)):
            rows = len(self.evaluation.examples.inputs)
            self._progress.print(f"evaluating the teacher on {rows} rows")
            generate = self.evaluation.generator(self.teacher, teacher=True)
            generated = generate(self.teacher.params)
            saved = {"about": about, "metrics": generated.metrics, "outputs": list(generated.texts)}
            write_json(path, saved | {"bindings": bindings})
        elif not processes.is_primary_process():  # only the primary process reports
            return []
        if step is not None:
            named = {f"teacher/{name}": value for name, value in saved["metrics"].items()}
            self.log.write(step, named)
        self._progress.print(evaluation_line("teacher", saved["metrics"]))
        return saved["outputs"]

    def _report_cuts(self):
        """Reports truncated and unknown text at the start, where it can still be changed."""
        unknown, tokens = self.batches.count_unknown()
        self._progress.print(
            f"training targets: {unknown} of {tokens} tokens are unknown to the vocabulary "
            f"(<unk>), {100 * unknown / max(tokens, 1):.2f}%"
        )
        cuts = self.batches.count_cuts()
        if any(cuts.values()):
            rows = self.batches.rows
            facts = ", ".join(f"{count} {name}" for name, count in cuts.items() if count)
            self._progress.print(
                f"training data: of {rows} rows, {facts}: longer inputs and targets are cut at "
                "INPUT_LENGTH and TARGET_LENGTH, empty examples weigh nothing"
            )

    def _finish(self, state) -> dict[str, Any]:
        self.store.wait()
        self.lease.check()
        path = self.directory / SUMMARY_FILE
        if not self._shapes:  # a finished run, started again
            kinds = {"steps": int, "evaluation": dict, "parameters": int}
            saved = read_or_mend(path, kinds, self._progress.print)
            if processes.broadcast_from_primary(saved.get("steps") == int(state.step)):
                return saved
        if not self._last_evaluation:  # killed between its last checkpoint and its summary
            self._evaluate(state, self.schedule.train_steps, write=False)
        sizes = [
            sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
            for tree in (self.student.shapes, state.params)
        ]
        summary = {
            "steps": int(state.step),
            "skipped_updates": int(state.skipped),
            "parameters": sizes[0],
            "trained_parameters": sizes[1],
            "seconds_per_step": statistics.median(self._seconds) if self._seconds else None,
            "evaluation": self._last_evaluation,
            "best_step": self.store.best_step(),
            "spans": step_spans(read_launches(self.directory), int(state.step)),
            **self._compilations.summary(),
        }
        write_json(path, summary)
        self._progress.print(markdown_table(self._table))
        self._progress.print(end_line(self.directory, summary["steps"], SUMMARY_FILE, self._best))
        return summary


def _shapes_of(batch) -> tuple[Any, ...]:
    """The key of a compiled program: the arrays' shapes, and the lengths of their parts."""
    shapes = (leaf.shape for leaf in jax.tree.leaves(batch))
    return *shapes, batch.input_parts, batch.teacher_input_parts

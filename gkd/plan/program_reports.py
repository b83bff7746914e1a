"""Compiles the programs of a run one after the other; prints and saves the record of each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.configuration.experiment import Experiment, Method, Teacher
from gkd.errors import InvalidFile, InvalidValue
from gkd.plan import batch_lengths, program_report, programs, report_lines
from gkd.plan.measured_run import measured_run
from gkd.program_cost.roofline import Chip
from gkd.train.step_program import StepProgram

PROGRAMS = {
    "step": programs.step_programs,
    "sft": functools.partial(programs.step_programs, name="sft"),
    "evaluation": programs.evaluation_programs,
    "generation": programs.generation_programs,
}


@dataclasses.dataclass
class ProgramReports:
    """Compiles every program of one setting, saving after each: the next one may take minutes.

    Attributes:
      step: the run's step program.
      build: function of an experiment to its step program.
      report: function of a label, a step program and one of its programs to the record of
        `program_report.facts`.
      rows: tokens of every training row, by feature; None for the greatest lengths.
      chip, prices: as in `program_report.facts`.
      say: function that prints a line.
      save: function that saves the records so far.
      records: the records so far, by label.
    """

    step: StepProgram
    build: Callable[[Experiment], StepProgram]
    report: Callable[..., dict[str, Any]]
    rows: Mapping[str, Any] | None
    chip: Chip
    prices: Mapping[str, Any]
    say: Callable[[str], None]
    save: Callable[[dict[str, Any]], None]
    records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def measure(self, names: Sequence[str]) -> None:
        """Compiles, prints and saves programs.

        Args:
          names: names out of `PROGRAMS`.
        """
        for name in names:
            program = self.step
            if name == "sft":
                if program.method.divergence is None and program.method.reward is None:
                    continue  # the step is fine-tuning already
                program = self.build(fine_tuning(program.experiment))
            found = [
                self._add(label, self.report(label, program, planned))
                for label, planned in PROGRAMS[name](program).items()
            ]
            if name in ("step", "sft"):
                if len(found) > 1:
                    self._add(name, self._whole(program, found))
                if self.rows is not None:
                    self._over_lengths(name, program)

    def _add(self, label, record) -> dict[str, Any]:
        """Prints and saves the record of a program."""
        self.records[label] = record
        self.say("\n".join(report_lines.lines(label, record)))
        self._save()
        return record

    def _whole(self, program, found) -> dict[str, Any]:
        """The record of a step of one program or two."""
        if len(found) == 1:
            return found[0]
        record = program_report.whole_step(found)
        if record["seconds"] is not None:
            record["run"] = program_report.of_run(program, record, self.chip, self.prices)
        return record

    def _over_lengths(self, name, program):
        """Compiles a step for all lengths of its batches; its greatest lengths are measured."""
        lengths = batch_lengths.batch_lengths(program, self.rows)
        estimates = []
        for shape in lengths.shapes:
            smaller = batch_lengths.of_shape(program, shape)
            if smaller.batch == program.batch:
                estimates.append(self.records[name])
                continue
            sizes = "×".join(map(report_lines.length_text, shape.values()))
            found = [
                self.report(f"{label} of {sizes} tokens", smaller, planned)
                for label, planned in PROGRAMS[name](smaller).items()
            ]
            estimates.append(self._whole(smaller, found))
        record = program_report.of_lengths(program, lengths, estimates, self.chip, self.prices)
        self.records[f"{name}: lengths"] = record
        self.say("\n".join(report_lines.lengths_lines(name, record)))
        self._save()

    def _save(self):
        self.save({"setting": program_report.setting(self.step), "programs": self.records})

    def compare(self, directory: str | None, topology: str) -> None:
        """Prints the measured step time of a run, if it is one, beside the estimate.

        Args:
          directory: the run directory.
          topology: name of the planned topology.
        """
        estimate = self.records.get("step: lengths", self.records.get("step", {}))
        if directory is None or estimate.get("seconds") is None:
            return
        try:
            run = measured_run(directory)
        except InvalidFile as error:
            return self.say(f"note: no measured step time: {error}")
        if run is not None:
            self.say(report_lines.beside_measured(run, estimate, topology))
            self.records["measured"] = dataclasses.asdict(run)
            self._save()

    def refuse(self) -> None:
        """Fails if the FLOPs of a program cannot be trusted.

        Raises:
          InvalidValue: they cannot.
        """
        refused = [label for label, found in self.records.items() if "refused" in found]
        if refused:
            raise InvalidValue(f"no estimate of {', '.join(refused)}: its FLOPs cannot be trusted")


def fine_tuning(experiment: Experiment) -> Experiment:
    """Returns the fine-tuning (SFT) of the same student on the same data."""
    given = experiment.method
    method = Method(normalisation=given.normalisation, training_task=given.training_task)
    return dataclasses.replace(experiment, method=method, teacher=Teacher())

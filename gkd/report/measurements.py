"""Groups the evaluations of runs by what they measure: those of one group may be averaged."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from gkd.report.arms import Arm, Arms

_FACTS = ("task", "split", "examples")


@dataclasses.dataclass(frozen=True)
class Measurement:
    """Evaluations of the same rows.

    Attributes:
      name: text that tells it from the other measurements; '' where there is only one.
      evaluations: each with the arm of its run, in the order of the arms.
    """

    name: str
    evaluations: tuple[tuple[Arm, Mapping[str, Any]], ...]

    def label(self, text: str) -> str:
        """Puts the name before a text, and spaces for its underscores.

        >>> Measurement("test", ()).label("beam_4"), Measurement("", ()).label("greedy")
        ('test: beam 4', 'greedy')
        """
        text = text.replace("_", " ")
        return f"{self.name}: {text}" if self.name else text

    def decodings(
        self, model: str = "student"
    ) -> Iterator[tuple[Arm, Mapping[str, Any], str, Mapping[str, float]]]:
        """Yields (arm, evaluation, name of the decoding, its metrics) of every evaluation.

        Args:
          model: 'student' or 'teacher'.
        """
        for arm, evaluation in self.evaluations:
            for decoding, numbers in evaluation["metrics"].get(model, {}).items():
                yield arm, evaluation, decoding, numbers


def measurements(arms: Arms) -> list[Measurement]:
    """Groups the evaluations of all arms by the file's name, task, split and number of rows."""
    found: dict[tuple[Any, ...], list[tuple[Arm, Mapping[str, Any]]]] = {}
    for arm in arms.arms:
        for run in arm.runs:
            for name, evaluation in run.evaluations.items():
                key = (name, *(evaluation.get(fact) for fact in _FACTS))
                found.setdefault(key, []).append((arm, evaluation))
    names = [key[0] for key in found]
    return [
        Measurement(_name(key, names), tuple(evaluations)) for key, evaluations in found.items()
    ]


def _name(key: tuple[Any, ...], names: list[str]) -> str:
    if len(names) == 1:
        return ""
    name, task, split, examples = key
    return name if names.count(name) == 1 else f"{name}, {examples} rows of {task}, {split}"

"""Collects sample outputs of all arms, side by side per prompt, with the KL of each token."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gkd.errors import UserError
from gkd.files.json_files import parse_json
from gkd.report.arms import Arms
from gkd.report.run_records import RunRecord

LONGEST = 3000  # characters of a text in the page
KL_LEVELS = (0.05, 0.2, 0.5, 1.0, 2.0)  # nats from which a token's background grows darker


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of a student's sample.

    Attributes:
      text: its text.
      kl: KL(P‖Q) at its position in nats.
    """

    text: str
    kl: float

    @property
    def level(self) -> int:
        """The number of `KL_LEVELS` that the KL reaches, from 0 to 5."""
        return sum(self.kl >= level for level in KL_LEVELS)


@dataclasses.dataclass(frozen=True)
class Output:
    """One output for a prompt.

    Attributes:
      source: text that names model and decoding.
      text: the output, at most `LONGEST` characters.
      tokens: its tokens with their KL, where they were measured; then they stand for the text.
    """

    source: str
    text: str
    tokens: tuple[Token, ...] = ()


@dataclasses.dataclass
class Example:
    """A prompt with its reference and the outputs of all models."""

    prompt: str
    reference: str
    outputs: list[Output] = dataclasses.field(default_factory=list)


def collect_examples(arms: Arms, most: int) -> tuple[list[Example], list[str]]:
    """Collects the first examples of every arm's first run, and of the runs that they start from.

    An evaluation's outputs are preferred to the sample table that training writes.

    Args:
      arms: the arms.
      most: number of prompts.

    Returns:
      The examples, and one line per file that could not be read.
    """
    examples: dict[tuple[str, str], Example] = {}
    problems: list[str] = []
    first = [(f"start: {run.name}", run) for run in arms.starts[:1]]
    first += [(arm.name, arm.runs[0]) for arm in arms.arms]
    for name, run in first:
        try:
            rows = _evaluated(run, most) or _sampled(run, most)
        except UserError as error:
            problems.append(f"{error}: left out")
            rows = _sampled(run, most)
        for prompt, reference, outputs in rows:
            key = (prompt, reference)
            if key not in examples and len(examples) >= most:
                continue
            example = examples.setdefault(key, Example(_cut(prompt), _cut(reference)))
            for model, text, tokens in outputs:
                source = "teacher" if model == "teacher" else f"{name}{model}"
                if source not in [output.source for output in example.outputs]:
                    example.outputs.append(Output(source, _cut(text), tokens))
    return list(examples.values()), problems


def _sampled(run: RunRecord, most: int) -> list[tuple[str, str, list[Any]]]:
    """The last sample table of training."""
    rows = []
    for row in run.samples[:most]:
        outputs = [("teacher", row["teacher"], ())] if "teacher" in row else []
        outputs += [("", row["student"], ())] if "student" in row else []
        rows.append((str(row.get("prompt", "")), str(row.get("reference", "")), outputs))
    return rows


def _evaluated(run: RunRecord, most: int) -> list[tuple[str, str, list[Any]]]:
    """The outputs of the run's newest evaluation that has a file of them."""
    for evaluation in sorted(
        run.evaluations, key=lambda name: _file(run, name).stat().st_mtime, reverse=True
    ):
        file = _file(run, evaluation).with_suffix(".jsonl")
        if file.is_file():
            with file.open("rb") as lines:
                found = [
                    parse_json(line, f"{file}:{number}", dict)
                    for number, line in enumerate(itertools.islice(lines, most), start=1)
                ]
            return [
                (str(row.get("input", "")), str(row.get("reference", "")), list(_outputs(row)))
                for row in found
            ]
    return []


def _file(run: RunRecord, evaluation: str):
    return run.path / f"evaluation-{evaluation}.json"


def _outputs(row: Mapping[str, Any]):
    """(model, text, tokens) of an evaluation's row: the first output of every decoding."""
    for model in ("teacher", "student"):
        by_decoding = row.get(model)
        for decoding, records in (by_decoding if isinstance(by_decoding, dict) else {}).items():
            if not (isinstance(records, list) and records and isinstance(records[0], dict)):
                continue
            if model == "teacher" and decoding not in ("greedy", "options"):
                continue
            suffix = "" if decoding in ("greedy", "options") else f", {decoding.replace('_', ' ')}"
            name = "teacher" if model == "teacher" else suffix
            yield name, str(records[0].get("text", "")), ()
    measured = row.get("token_divergences")
    measured = measured.get("free_running") if isinstance(measured, dict) else None
    tokens = _tokens(measured) if isinstance(measured, dict) else ()
    if tokens:
        text = "".join(token.text for token in tokens)
        yield ", sample at temperature 1, KL(P‖Q) of each token", text, tokens


def _tokens(measured: Mapping[str, Any]) -> tuple[Token, ...]:
    texts, values = measured.get("pieces"), measured.get("forward_kl")
    if not (isinstance(texts, list) and isinstance(values, list) and len(texts) == len(values)):
        return ()
    return tuple(
        Token(str(text), float(value))
        for text, value in zip(texts, values, strict=True)
        if isinstance(value, int | float)
    )


def _cut(text: Any) -> str:
    text = str(text)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text)} characters)"


def fewer(examples: Sequence[Example]) -> list[Example]:
    """Drops the second half of the examples, to make a page smaller."""
    return list(examples[: len(examples) // 2])

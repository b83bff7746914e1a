"""Runs the loop of `infer`: generates one window of inputs after the other, and writes it."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import json
import math
import time
from typing import Any

from gkd.errors import NotFinite
from gkd.infer.generator import Generator, encode_inputs, encode_targets
from gkd.infer.inputs import Source
from gkd.infer.output_files import OutputFiles
from gkd.infer.task_inputs import SplitSource
from gkd.runs.lease import Lease
from gkd.runs.progress import Progress
from gkd.runs.signals import Stopped, StopRequest
from gkd.vocabularies import vocabularies
from gkd.vocabularies.token_rows import ended
from gkd.vocabularies.white_space import WhiteSpaceRule, rule_of


@dataclasses.dataclass(frozen=True)
class InferenceJob:
    """One launch of `infer`.

    Attributes:
      source: the inputs.
      files: the output.
      lease: lease on the output.
      generator: the model's generator, which also scores targets if the source has them.
      vocabulary: vocabulary of inputs and completions.
      prefix: text before every input.
      input_length: greatest length of an input in tokens.
      window: number of inputs per window.
    """

    source: Source | SplitSource
    files: OutputFiles
    lease: Lease
    generator: Generator
    vocabulary: Any
    prefix: str
    input_length: int
    window: int

    def run(self, done: int) -> dict[str, Any]:
        """Generates and writes the completions of all inputs from number `done` on.

        Args:
          done: number of complete inputs.

        Returns:
          The totals: counts, seconds and compiled programs.

        Raises:
          Stopped: a signal was received; the current window is dropped.
        """
        totals = collections.Counter(inputs_cut=0, samples=0, stopped_by_eos=0, tokens=0)
        rows = self.source.rows(done)
        started = time.monotonic()
        with StopRequest() as stop, Progress("infer", self.source.count, done) as progress:
            for first in range(done, self.source.count, self.window):
                window = list(itertools.islice(rows, self.window))
                outputs: list[Any] = [None] * len(window)
                ready = 0
                targets = self._targets(window, totals)
                for batch in self._outputs(window, first, targets, totals):
                    for position, output in batch:
                        outputs[position] = output
                    ready += len(batch)
                    tokens = sum(len(t) for _, output in batch for t in output.tokens)
                    progress.update(first + ready, tokens)
                    if stop.requested and ready < len(window):
                        raise Stopped(self._stopped(stop, first))
                self.lease.check()
                self.files.append(self._lines(window, targets, outputs, first, totals))
                if stop.requested and first + len(window) < self.source.count:
                    raise Stopped(self._stopped(stop, first + len(window)))
        seconds = time.monotonic() - started
        return {**totals, "seconds": seconds, "programs": self.generator.programs}

    @functools.cached_property
    def _rule(self) -> WhiteSpaceRule:
        """The rule for white space, the same as in training."""
        return rule_of(self.vocabulary)

    def _stopped(self, stop: StopRequest, done: int) -> str:
        return (
            f"{stop.signal_name}: {done} of {self.source.count} inputs are complete in "
            f"{self.files.partial}; the same command continues"
        )

    def _targets(self, rows, totals):
        """Token ids of the targets to score; None if none are scored."""
        if not self.source.target_field:
            return None
        texts = [self._rule.fit(self.source.target_of(row)) for row in rows]
        length = self.generator.decoding.max_length
        after_text = not self.source.is_chat
        targets, cut = encode_targets(self.vocabulary, texts, length, after_text)
        totals["targets_cut"] += cut
        return targets

    def _outputs(self, rows, first, targets, totals):
        """Generates the completions of a window's rows, batch by batch."""
        texts = [self.source.prompt_of(row) for row in rows]
        if not self.source.is_chat:
            texts = [self._rule.fit(self.prefix + text) for text in texts]
        inputs, cut = encode_inputs(self.vocabulary, texts, self.input_length)
        totals["inputs_cut"] += cut
        return self.generator.outputs(inputs, first, targets)

    def _lines(self, rows, targets, outputs, first, totals) -> str:
        """Renders the lines of a window, in the order of the inputs."""
        lines = []
        for position, (row, output) in enumerate(zip(rows, outputs, strict=True)):
            index = first + position
            others = self.source.others_of(row)
            scores = self._scores(targets and targets[position], output, index)
            texts = vocabularies.decode_tokens(self.vocabulary, output.tokens)
            for sample, (text, tokens) in enumerate(zip(texts, output.tokens, strict=True)):
                is_ended = ended(self.vocabulary, tokens)
                fields = {
                    "index": index,
                    "sample": sample,
                    "input": self.source.input_of(row),
                    "text": text,
                    "tokens": tokens,
                    "log_prob": self._number(output.log_probs[sample], index),
                    "stop": ("eos" if is_ended else "length") if tokens else "none",
                    **scores,
                }
                others = {name: value for name, value in others.items() if name not in fields}
                lines.append(_json_line({**fields, **others}))
                totals["samples"] += 1
                totals["stopped_by_eos"] += is_ended
                totals["tokens"] += len(tokens)
        return "".join(lines)

    def _scores(self, target, output, index) -> dict[str, Any]:
        """The fields of a scored target; empty if it is not scored."""
        if target is None:
            return {}
        log_probs = [self._number(value, index) for value in output.target_log_probs]
        scores = {"target_log_probs": log_probs}
        if output.target_top_ids is not None:
            scores["target_tokens"] = target
            scores["target_top_ids"] = output.target_top_ids
            scores["target_top_log_probs"] = [
                [self._number(value, index) for value in best]
                for best in output.target_top_log_probs
            ]
        return scores

    def _number(self, value: float, index: int) -> float | None:
        """Converts a log-probability for JSON: None for −inf, of empty completions only."""
        if math.isnan(value):
            raise NotFinite(
                f"{self.source.path}: input {index} gives NaN log-probabilities: try --dtype "
                "float32, or another checkpoint"
            )
        return round(value, 6) if math.isfinite(value) else None


def _json_line(fields: dict[str, Any]) -> str:
    """A line of the output; half surrogate pairs, which have no UTF-8, stay escaped."""
    line = json.dumps(fields, ensure_ascii=False) + "\n"
    try:
        line.encode()
    except UnicodeEncodeError:
        return json.dumps(fields) + "\n"
    return line

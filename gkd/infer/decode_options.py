"""How outputs are written: greedy, sampled, or searched for with beams."""

from __future__ import annotations

import dataclasses

from gkd.errors import InvalidValue

LENGTH_PENALTY = 0.6  # T5X's


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How outputs are written: one greedy output an input, by default.

    Attributes:
      max_length: tokens of an output at most, EOS included.
      temperature: 0 is greedy; above 0 outputs are sampled.
      top_k, top_p: of sampling; 0 and 1 keep all ids.
      samples: outputs an input.
      beams: of a beam search, whose best `samples` outputs are kept; 0 is no beam search.
      length_penalty: of a beam search; None is T5's.
      seed: of sampling.

    Raises:
      ValueError: a setting that means nothing, or that the others would ignore.
    """

    max_length: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    samples: int = 1
    beams: int = 0
    length_penalty: float | None = None
    seed: int = 0

    def __post_init__(self):
        for name, least in (("max_length", 1), ("samples", 1), ("beams", 0), ("top_k", 0)):
            if getattr(self, name) < least:
                raise InvalidValue(f"{name} is {getattr(self, name)}: use {least} or more")
        if not 0 <= self.temperature < float("inf"):
            raise InvalidValue(f"temperature is {self.temperature}: use 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise InvalidValue(f"top_p is {self.top_p}: use a probability in (0, 1]")
        if self.beams:
            self._check_beams()
        elif self.length_penalty is not None:
            raise InvalidValue("length_penalty is of a beam search: set beams too")
        elif not self.temperature and self.samples > 1:
            raise InvalidValue(
                f"{self.samples} greedy samples are all the same: set temperature above 0, or beams"
            )
        elif not self.temperature and (self.top_k or self.top_p < 1):
            raise InvalidValue("top_k and top_p are of sampling: set temperature above 0 too")

    def _check_beams(self):
        if self.temperature or self.top_k or self.top_p < 1:
            raise InvalidValue(
                "beams search, temperature, top_k and top_p sample: set one or the other"
            )
        if self.samples > self.beams:
            raise InvalidValue(
                f"samples is {self.samples} and beams {self.beams}: a beam search gives at most "
                f"{self.beams} outputs an input"
            )
        if not 0 <= self.penalty < float("inf"):
            raise InvalidValue(f"length_penalty is {self.length_penalty}: use 0 (none) or more")

    @property
    def penalty(self) -> float | int | None:
        """The length penalty that is used; None where there is no beam search."""
        unset = self.beams and self.length_penalty is None
        return LENGTH_PENALTY if unset else self.length_penalty

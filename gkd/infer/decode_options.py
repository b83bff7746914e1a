"""The options of decoding: greedy, sampling, or beam search."""

from __future__ import annotations

import dataclasses

from gkd.errors import InvalidValue

LENGTH_PENALTY = 0.6  # T5X's


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The options of decoding; by default one greedy completion per input.

    Attributes:
      max_length: greatest length of a completion in tokens, including EOS.
      temperature: 0 for greedy decoding; above 0 completions are sampled.
      top_k, top_p: limits of sampling to the most probable ids; 0 and 1 keep all ids.
      samples: completions per input.
      beams: beams of a beam search, whose best `samples` completions are kept; 0 for none.
      length_penalty: length penalty of the beam search; None is T5's 0.6.
      seed: PRNG seed of sampling.

    Raises:
      ValueError: an option is out of range, or would be ignored because of others.
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
            raise InvalidValue("length_penalty belongs to a beam search: set beams too")
        elif not self.temperature and self.samples > 1:
            raise InvalidValue(
                f"{self.samples} greedy samples are all the same: set temperature above 0, or beams"
            )
        elif not self.temperature and (self.top_k or self.top_p < 1):
            raise InvalidValue("top_k and top_p belong to sampling: set temperature above 0 too")

    def _check_beams(self):
        if self.temperature or self.top_k or self.top_p < 1:
            raise InvalidValue(
                "beams search, temperature, top_k and top_p sample: set one or the other"
            )
        if self.samples > self.beams:
            raise InvalidValue(
                f"samples is {self.samples} and beams {self.beams}: a beam search gives at most "
                f"{self.beams} completions per input"
            )
        if not 0 <= self.penalty < float("inf"):
            raise InvalidValue(f"length_penalty is {self.length_penalty}: use 0 (none) or more")

    @property
    def penalty(self) -> float | int | None:
        """The effective length penalty; None without a beam search."""
        unset = self.beams and self.length_penalty is None
        return LENGTH_PENALTY if unset else self.length_penalty

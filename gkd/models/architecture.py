"""The protocol of an architecture: a model's configuration as all other code sees it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from gkd.errors import InvalidValue
from gkd.models.flops import MatrixSizes
from gkd.models.interface import Seq2SeqModel, SpecialIds
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding

# Fields that select how a model runs and leave its parameters as they are.
EXECUTION_FIELDS = ("dtype", "dropout_rate", "stacked_layers", "remat")


@runtime_checkable
class Architecture(Protocol):
    """A model's configuration: an immutable value that builds the model and describes it.

    A new family is a frozen dataclass with these members, an entry in
    `gkd.checkpoints.architectures`, and a module of gkd/hugging_face. Parameters are nested
    dictionaries; layers are named `layers_0`, `layers_1`, …, or `layers` where they are stacked
    along a new first axis.

    Attributes:
      family: Hugging Face's name of the model type: 't5', 'mt5', …
      vocab_size: V, rows of the embedding table.
      dtype: compute dtype, 'float32' or 'bfloat16'.
      dropout_rate: rate of the dropout, which acts where a dropout key is passed.
      stacked_layers: True where layers run in a scan over stacked parameters.
      remat: True where the backward pass recomputes each layer.
      configurable: False where `with_execution` changes nothing: the model fixes how it runs.
      special_ids: start, end and padding.
      sizes: sizes of the matrix products, for closed-form FLOPs.
    """

    @property
    def family(self) -> str: ...  # noqa: D102

    @property
    def vocab_size(self) -> int: ...  # noqa: D102

    @property
    def dtype(self) -> str: ...  # noqa: D102

    @property
    def dropout_rate(self) -> float: ...  # noqa: D102

    @property
    def stacked_layers(self) -> bool: ...  # noqa: D102

    @property
    def remat(self) -> bool: ...  # noqa: D102

    @property
    def configurable(self) -> bool: ...  # noqa: D102

    @property
    def special_ids(self) -> SpecialIds: ...  # noqa: D102

    @property
    def sizes(self) -> MatrixSizes: ...  # noqa: D102

    def build(self, sharding: ModelSharding = UNSHARDED) -> Seq2SeqModel:
        """Builds the model's pure functions, bound to the mesh on which they run."""

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shape of every parameter by name, layers not stacked."""

    def with_execution(
        self,
        *,
        dtype: str | None = None,
        dropout_rate: float | None = None,
        stacked_layers: bool | None = None,
        remat: bool | None = None,
    ) -> Architecture:
        """Returns the same architecture with other execution fields; None keeps a field."""

    def describe(self) -> dict[str, Any]:
        """Returns JSON from which `from_description` makes an equal architecture."""


def with_ids_of(config: Architecture, other: Architecture) -> Architecture:
    """Returns an architecture with the padding and ends of another one of its kind.

    These are the vocabulary's, and may differ between two uses of the same weights.

    Args:
      config: the architecture.
      other: the one whose ids are taken; of another kind it changes nothing.
    """
    if type(config) is not type(other) or not hasattr(config, "with_special_ids"):
        return config
    ids = other.special_ids
    return config.with_special_ids(ids.padding, ids.end, ids.ends)


def check_architecture(value: Any, name: str) -> Architecture:
    """Returns an architecture, or raises InvalidValue for anything else.

    Args:
      value: a configuration's value for a model.
      name: the setting, for the message.

    Raises:
      InvalidValue: one line that names the type.
    """
    if isinstance(value, type) or not isinstance(value, Architecture):
        kind = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise InvalidValue(
            f"{name} is {kind}, which is not an architecture: give one such as t5.T5Config() or "
            "decoder_only.DecoderConfig(), or t5x_adapter.adapt() for a T5X module"
        )
    return value

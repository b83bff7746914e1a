"""Keeps some layers of a model: a smaller student that begins with its teacher's own layers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from gkd.checkpoints.tensors import Checkpoint, check_tensors
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.t5gemma import T5GemmaConfig
from gkd.errors import InvalidValue
from gkd.models.architecture import Architecture
from gkd.models.t5 import T5Config

_LAYER = re.compile(r"(encoder|decoder)/layers_(\d+)/(.+)")


def keep_layers(opened: Checkpoint, encoder: str | None, decoder: str | None) -> Checkpoint:
    """Returns the checkpoint of the model with the named layers only, in their order.

    Everything else stays: embeddings, final norms, head, and the relative position bias that all
    layers of a T5 or mT5 share; in an umT5 every layer takes its own bias along.

    Args:
      opened: an opened checkpoint, whose tensors stay unread.
      encoder, decoder: numbers of the layers from 0, as '0,2,4,7'; None keeps all.

    Raises:
      InvalidValue: the model has no such layers, or the numbers are no ascending list of them.
    """
    depths = depths_of(opened.config)
    if encoder is not None and "encoder" not in depths:
        raise InvalidValue(
            f"keep_encoder_layers is {encoder!r}, but {opened.path} is a decoder-only model: give "
            "keep_decoder_layers"
        )
    texts = {"encoder": encoder, "decoder": decoder}
    kept = {
        side: _numbers(f"keep_{side}_layers", texts[side], depth) for side, depth in depths.items()
    }
    tensors = {}
    for name, tensor in opened.tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            tensors[name] = tensor
            continue
        side, number, rest = layer.group(1), int(layer.group(2)), layer.group(3)
        if number in kept[side]:
            tensors[f"{side}/layers_{kept[side].index(number)}/{rest}"] = tensor
    config = _with_layers(opened.config, kept)
    check_tensors(tensors, config, opened.path)
    return dataclasses.replace(opened, config=config, tensors=tensors)


def depths_of(config: Any) -> dict[str, int]:
    """Returns the number of layers of each of a model's stacks, by its name among the parameters.

    >>> depths_of(T5Config())
    {'encoder': 8, 'decoder': 8}
    """
    if isinstance(config, T5Config):
        return {"encoder": config.num_encoder_layers, "decoder": config.num_decoder_layers}
    if isinstance(config, DecoderConfig):
        return {"decoder": config.num_layers}
    if isinstance(config, T5GemmaConfig):
        return {"encoder": config.encoder.num_layers, "decoder": config.decoder.num_layers}
    raise InvalidValue(f"a {type(config).__name__} has no layers that can be chosen")


def _with_layers(config: Architecture, kept: dict[str, Sequence[int]]) -> Architecture:
    """The architecture with these layers of every stack."""
    if isinstance(config, T5Config):
        counts = {f"num_{side}_layers": len(numbers) for side, numbers in kept.items()}
        return dataclasses.replace(config, **counts)
    if isinstance(config, DecoderConfig):
        return config.with_layers(kept["decoder"])
    return dataclasses.replace(
        config,
        encoder=config.encoder.with_layers(kept["encoder"]),
        decoder=config.decoder.with_layers(kept["decoder"]),
    )


def _numbers(name: str, text: str | None, count: int) -> Sequence[int]:
    """Parses the numbers of one stack's layers."""
    if text is None:
        return range(count)
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise InvalidValue(
            f"{name} is {text!r}: give the numbers of the layers from 0, separated by commas, such "
            f"as {_example(count)}"
        )
    numbers = [int(part) for part in parts]
    for number in numbers:
        if number >= count:
            raise InvalidValue(
                f"{name} is {text!r}: there is no layer {number}, the layers are 0 to {count - 1}"
            )
    for number, following in zip(numbers, numbers[1:], strict=False):
        if number == following:
            raise InvalidValue(f"{name} is {text!r}: layer {number} is there twice")
        if number > following:
            raise InvalidValue(
                f"{name} is {text!r}: give the layers in ascending order, {following} before "
                f"{number}"
            )
    return numbers


def _example(count: int) -> str:
    """Half of the layers at even distances, the first and the last among them."""
    half = max(1, count // 2)
    return ",".join(str(round(i * (count - 1) / max(1, half - 1))) for i in range(half))

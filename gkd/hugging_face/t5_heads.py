"""Reads and converts output heads of Hugging Face checkpoints: tied or untied, scaled or not.

transformers 4 scales the logits of a tied head by 1/√d_model and of no other head; `config.json`
states whether the head is tied. transformers 5 determines tying from the tensors, writes
`tie_word_embeddings: true` for every model, and scales a T5 if `scale_decoder_outputs` is true, an
mT5 never and an umT5 always.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from gkd.errors import InvalidFile
from gkd.models.t5 import T5Config
from gkd.tensor_files.tensor import Tensor

HEAD = "lm_head.weight"
_TABLE, _KERNEL = "token_embedder/embedding", "decoder/logits_dense/kernel"
_LOG = logging.getLogger(__name__)


def read_head(raw: Mapping[str, Any], is_own: bool | None, where: Any) -> tuple[bool, bool]:
    """Determines whether a checkpoint's head is tied and its logits are scaled.

    Args:
      raw: the checked config.json.
      is_own: true if `lm_head.weight` differs from the embedding table; None if it is absent.
      where: path of the file, for messages.

    Returns:
      (the head is the embedding table, logits are divided by √d_model).

    Raises:
      ValueError: the config.json of transformers 4 ties a head that differs from the table.
    """
    family, ties = raw["model_type"], raw.get("tie_word_embeddings")
    flag = raw.get("scale_decoder_outputs") if family == "t5" else None
    if flag is not None or _is_version_5(raw):
        return not is_own, _is_scaled_in_5(family, ties, flag, is_own, where)
    if is_own:
        unclear = family == "t5" or raw.get("transformers_version")  # else only version 5 writes it
        if unclear and (ties or (ties is None and family == "t5")):
            raise InvalidFile(
                f"{where}: the head is tied by tie_word_embeddings, but {HEAD} differs from the "
                "embedding table: set tie_word_embeddings to false if the head is the model's own, "
                f"or leave {HEAD} out"
            )
        return False, False
    tied = ties if ties is not None else family != "mt5"
    return tied or is_own is False, tied


def _is_version_5(raw: Mapping[str, Any]) -> bool:
    major = re.match(r"\d{1,4}", raw.get("transformers_version") or "")
    return major is not None and int(major.group()) >= 5


def _is_scaled_in_5(family: str, ties: bool | None, flag: bool | None, is_own: Any, where: Any):
    if family == "t5":
        return ties is not False if flag is None else flag
    if family == "umt5" and is_own:
        _LOG.warning(
            "%s: transformers 5 divides the logits of this umT5 by √d_model although its head is "
            "its own; it is read as umT5 is published and transformers 4 runs it, without",
            where,
        )
    return family == "umt5" and not is_own


def for_hugging_face(
    config: T5Config, tensors: Mapping[str, Tensor]
) -> tuple[T5Config, dict[str, Tensor], dict[str, bool]]:
    """Chooses the form of a head for which transformers 4 and 5 give the same logits.

    Only a T5 and an umT5 can be tied and scaled in both. A tied head that is not scaled is written
    twice, as the table and as `lm_head.weight`; any other scale is multiplied into an untied head.

    Args:
      config: the architecture.
      tensors: its parameters by gkd's names.

    Returns:
      The architecture to write, its tensors, and the fields of config.json that describe its head.
    """
    family = "umt5" if config.relative_bias_per_layer else config.family
    if config.scales_logits and not (config.logits_via_embedding and family != "mt5"):
        config, tensors = with_own_head(config, tensors)
    scaled = config.scales_logits
    if config.logits_via_embedding and not scaled and HEAD not in config.embedding_copies:
        copies = (*config.embedding_copies, HEAD)
        config = dataclasses.replace(config, embedding_copies=copies)
    if family == "umt5" and not scaled:
        _LOG.warning(
            "transformers 5 divides the logits of every umT5 by √d_model, also of this one, whose "
            "logits are not scaled: load what is written with transformers 4"
        )
    fields = {"tie_word_embeddings": scaled}
    return (
        config,
        dict(tensors),
        fields | ({"scale_decoder_outputs": scaled} if family == "t5" else {}),
    )


def with_own_head(
    config: T5Config, tensors: Mapping[str, Tensor]
) -> tuple[T5Config, dict[str, Tensor]]:
    """Converts a model to an untied head without scaled logits, whose kernel includes the scale.

    Args:
      config: the architecture.
      tensors: its parameters by gkd's names.

    Returns:
      The architecture and parameters; a head that includes a scale is float32 at least.
    """
    tied, scale = config.logits_via_embedding, config.logits_scale
    source = tensors[_TABLE if tied else _KERNEL]
    dtype = source.dtype if scale == 1 else np.promote_types(source.dtype, np.float32)

    def read() -> np.ndarray:
        kernel = source.read().T if tied else source.read()
        return kernel if scale == 1 else kernel.astype(dtype) * dtype.type(scale)

    shape = source.shape[::-1] if tied else source.shape
    untied = dataclasses.replace(
        config,
        logits_via_embedding=False,
        scale_logits=None,
        embedding_copies=tuple(name for name in config.embedding_copies if name != HEAD),
    )
    return untied, {**tensors, _KERNEL: Tensor(shape, dtype, source.where, read)}

"""Writes adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from gkd.checkpoints.hugging_face import is_hugging_face
from gkd.checkpoints.tensors import Checkpoint, read_finite
from gkd.decoders.decoder_only import DecoderConfig
from gkd.errors import InvalidValue
from gkd.files import atomic_folders
from gkd.hugging_face import families
from gkd.models.t5 import T5Config
from gkd.tensor_files.safetensors_files import converted, write_safetensors
from gkd.tensor_files.tensor import Tensor

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_HEAD = "decoder/logits_dense/kernel"


def adapter_tensors(opened: Checkpoint) -> Mapping[str, Tensor]:
    """Returns the adapters of a checkpoint.

    Raises:
      InvalidValue: it is not one of adapters.
    """
    if opened.adapter_tensors is None:
        raise InvalidValue(
            f"{opened.path} is a whole model: only a run with LORA has adapters to write as 'peft'"
        )
    return opened.adapter_tensors


def save_peft(
    directory: epath.PathLike, opened: Checkpoint, adapters: Mapping[str, Tensor]
) -> None:
    """Writes a folder that `peft.PeftModel.from_pretrained` adds to the base, atomically.

    Args:
      directory: path of the new folder, which must be missing or empty.
      opened: an opened checkpoint of adapters. PEFT finds the base by the name in the written file;
        transformers must be able to load it.
      adapters: its adapters, see `adapter_tensors`.

    Raises:
      FileExistsError: the directory exists and is not empty.
      OSError: writing failed, e.g. because the disk is full; `directory` is not created.
    """
    known = families.of_architecture(opened.config).parameter_names(opened.config)
    head_scale = opened.config.logits_scale if isinstance(opened.config, T5Config) else 1.0
    tensors, modules = {}, []
    for name in sorted(adapters):
        kernel, half = name.rsplit("/", 1)
        module = known[kernel][0].removesuffix(".weight")
        scale = head_scale if (kernel, half) == (_HEAD, "b") else 1.0
        written = f"base_model.model.{module}.lora_{half.upper()}.weight"
        tensors[written] = _transposed(adapters[name], scale)
        modules += [module] * (half == "a")
    with atomic_folders.new_folder(directory) as folder:
        write_safetensors(folder / WEIGHTS_FILE, tensors)
        text = json.dumps(_configuration(opened, modules), indent=2)
        (folder / CONFIG_FILE).write_text(text + "\n")


def remark(opened: Checkpoint) -> str:
    """A line where PEFT could not load the base by the name in the written file; else empty."""
    base = opened.adapters.find_base(opened.path.parent.parent)
    if opened.adapters.base_from_run is None or is_hugging_face(base):
        return ""
    return (
        f"the base {base} is no Hugging Face directory: `convert` it to one, and give "
        "transformers that folder"
    )


def _transposed(tensor: Tensor, scale: float) -> Tensor:
    """Transposes a tensor to PyTorch's orientation, [out, in], times the head's scale."""
    checked = dataclasses.replace(tensor, read=functools.partial(read_finite, tensor))
    return converted(checked, tensor.shape[::-1], lambda array: np.transpose(array * scale))


def _configuration(opened: Checkpoint, modules: list[str]) -> dict[str, Any]:
    lora, (base, _, revision) = opened.adapters.lora, opened.adapters.base.partition("@")
    if opened.adapters.base_from_run is not None:  # a path may have an @ of its own
        base, revision = opened.adapters.base, ""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if isinstance(opened.config, DecoderConfig) else "SEQ_2_SEQ_LM",
        "base_model_name_or_path": base,
        "revision": revision or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "inference_mode": True,
    }

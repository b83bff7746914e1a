"""The verb `convert`: converts a checkpoint to another format, tensor by tensor."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from gkd.checkpoints import hugging_face, run_format, t5x_format
from gkd.checkpoints.tensors import Checkpoint
from gkd.convert import peft
from gkd.convert.conversion_record import write_record
from gkd.convert.kept_layers import depths_of, keep_layers
from gkd.errors import InvalidValue
from gkd.files.atomic_folders import remove_unfinished
from gkd.runs import checkpoint_vocabulary, model_loading
from gkd.runs.lease import Lease, job_lease
from gkd.runs.progress import Progress
from gkd.step_names import BEST_OR_NEWEST
from gkd.tensor_files.tensor import Tensor
from gkd.vocabularies import vocabularies

_DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}


def convert(
    source: str,
    target: str,
    to: str | None = None,
    step: int | str | None = BEST_OR_NEWEST,
    dtype: str | None = None,
    vocabulary: str | None = None,
    keep_encoder_layers: str | None = None,
    keep_decoder_layers: str | None = None,
) -> None:
    """Converts a checkpoint atomically: `target` appears complete or not at all.

    A file `conversion.json` in it records these arguments.

    Args:
      source: path of a run directory or step folder, a Hugging Face directory, or a T5X checkpoint;
        or the name of a model on the Hugging Face Hub.
      target: path of the new folder, which must be missing or empty.
      to: 'gkd', 'huggingface', 't5x' (msgpack and zarr) or 't5x_orbax'; 'peft' writes the adapters
        of a run with LORA, all others the whole model; by default Hugging Face, or gkd for a
        Hugging Face source.
      step: step of a run: 'best_or_newest', 'best', 'newest' or a number.
      dtype: dtype of the written weights; by default that of every tensor.
      vocabulary: path of a sentencepiece model or of a tokenizer's folder that is copied, or
        'bytes'; by default the source's own tokenizer files, if it has any.
      keep_encoder_layers, keep_decoder_layers: numbers of the layers to keep, from 0, as '0,2,4,7';
        by default all of them.

    Raises:
      FileNotFoundError: a file is missing.
      FileExistsError: `target` exists and is not empty.
      ValueError: a file is damaged, or the format cannot represent the model.
      OSError: writing failed, e.g. because the disk is full.
    """
    asked = {name: value for name, value in locals().items() if name != "target"}
    opened = model_loading.open_model("SRC", source, step)
    to = to or ("gkd" if opened.format == "huggingface" else "huggingface")
    pieces = _vocabulary(opened, vocabulary)
    folder = pieces and vocabularies.tokenizer_folder(pieces)
    if vocabulary is None and opened.tokenizer is not None and opened.tokenizer.names:
        folder = opened.tokenizer.folder
    kept = ""
    if keep_encoder_layers is not None or keep_decoder_layers is not None:
        if to == "peft":
            raise InvalidValue("--to peft writes the adapters of all layers: keep all of them")
        whole = opened.config
        opened = keep_layers(opened, keep_encoder_layers, keep_decoder_layers)
        kept = _kept(whole, opened.config)
    written = peft.adapter_tensors(opened) if to == "peft" else opened.tensors
    total = len(written)
    place = pathlib.Path(target).absolute()
    with job_lease(place, f"DST {target}") as lease, Progress("convert", total) as progress:
        remove_unfinished(place)
        tensors = _counted(written, dtype, progress, lease)
        _WRITERS[to](target, opened, tensors, pieces, folder)
        write_record(place, asked, opened.name, opened.digest)
        chosen = f"{opened.chosen}, " if opened.chosen else ""
        values = sum(int(np.prod(tensor.shape)) for tensor in written.values())
        progress.print(
            f"{opened.source or source} ({opened.format}, {chosen}{kept}{values:,} parameters) -> "
            f"{target} ({to}), vocabulary: "
            + ("none known" if pieces is None else f"{pieces.vocab_size} ids")
        )


def _kept(whole: Any, config: Any) -> str:
    depths = depths_of(config)
    sides = [f"{depths[side]} of {depth} {side} layers" for side, depth in depths_of(whole).items()]
    return f"{' and '.join(sides)}, "


def _vocabulary(opened: Checkpoint, given: str | None) -> Any:
    """The vocabulary to write; None if none is known."""
    if given is None and checkpoint_vocabulary.own_vocabulary(opened) is None:
        return None
    return checkpoint_vocabulary.vocabulary_of(opened, given)


def _counted(
    tensors: Mapping[str, Tensor], dtype: str | None, progress: Progress, lease: Lease
) -> dict[str, Tensor]:
    """Wraps tensors so that reading one converts it and advances the progress bar."""
    done: set[str] = set()

    def reader(name: str, tensor: Tensor):
        def read() -> np.ndarray:
            lease.check()
            array = tensor.read()
            done.add(name)
            progress.update(len(done))
            return array if dtype is None else array.astype(_DTYPES[dtype])

        return read

    return {
        name: dataclasses.replace(
            tensor,
            dtype=tensor.dtype if dtype is None else np.dtype(_DTYPES[dtype]),
            read=reader(name, tensor),
        )
        for name, tensor in tensors.items()
    }


def _write_run(target: str, opened: Checkpoint, tensors: Any, vocabulary: Any, folder: Any) -> None:
    description = model_loading.describe(opened.config, vocabulary)
    pieces = vocabulary and vocabularies.sentencepiece_file(vocabulary)
    run_format.save_run_checkpoint(target, opened.config, tensors, description, pieces, folder)


def _write_hugging_face(
    target: str, opened: Checkpoint, tensors: Any, vocabulary: Any, folder: Any
) -> None:
    pieces = vocabulary and vocabularies.sentencepiece_file(vocabulary)
    hugging_face.save_hf(
        target,
        opened.config,
        tensors,
        tokenizer_from=folder,
        sentencepiece=pieces,
        sentinels=None if pieces is None else vocabulary.extra_ids,
        bytes_vocabulary=vocabulary is not None and vocabularies.is_byte_level(vocabulary),
    )


def _write_t5x(
    layout: str, target: str, opened: Checkpoint, tensors: Any, vocabulary: Any, folder: Any
) -> None:
    pieces = vocabulary and vocabularies.sentencepiece_file(vocabulary)
    step = opened.path.name if opened.format == "gkd" else "0"
    t5x_format.save_t5x(target, opened.config, tensors, int(step), pieces, folder, layout)


def _write_peft(
    target: str, opened: Checkpoint, tensors: Any, vocabulary: Any, folder: Any
) -> None:
    peft.save_peft(target, opened, tensors)
    if line := peft.remark(opened):
        print(f"gkd: warning: {line}", file=sys.stderr)


_WRITERS = {
    "peft": _write_peft,
    "gkd": _write_run,
    "huggingface": _write_hugging_face,
    "t5x": functools.partial(_write_t5x, "msgpack"),
    "t5x_orbax": functools.partial(_write_t5x, "orbax"),
}

"""Student and teacher of a job: architecture, parameters on the mesh, one vocabulary."""

from __future__ import annotations

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gkd.checkpoints import formats
from gkd.checkpoints.tensors import Checkpoint, check_tensors, read_onto
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidValue
from gkd.files.atomic_files import replace_file
from gkd.models.interface import Seq2SeqModel
from gkd.models.t5 import T5Config, as_seq2seq
from gkd.parallel import mesh as meshes
from gkd.parallel import processes
from gkd.vocabularies import vocabularies
from gkd.vocabularies.tokenizer_files import TOKENIZER_FILES, VOCABULARY_FILE

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model of a job.

    Attributes:
      config: its architecture.
      model: its functions.
      shardings: of its parameters on the mesh.
      params: on the mesh; None for a student, whose parameters live in the training state.
      checkpoint: the folder it comes from (a run's step folder), None where it starts at random.
      chosen: which step of a run that is, and why, in words; empty for other formats.
      shapes: of its parameters: `jax.ShapeDtypeStruct`s with dtypes and shardings.
    """

    config: T5Config
    model: Seq2SeqModel
    shardings: Any
    params: Any
    checkpoint: str | None
    shapes: Any = None
    chosen: str = ""


def describe(config: T5Config, vocabulary: Any) -> dict[str, Any]:
    """What a checkpoint says of itself: architecture and vocabulary, as JSON."""
    known = vocabulary is not None
    return {
        "model": dataclasses.asdict(config),
        "vocabulary": describe_vocabulary(vocabulary) if known else None,
    }


def describe_vocabulary(vocabulary: Any) -> dict[str, Any]:
    """Size and fingerprint of a vocabulary: equal if and only if every piece is."""
    return {
        "size": int(vocabulary.vocab_size),
        "sha256": vocabularies.fingerprint(vocabulary),
        "bytes": vocabularies.is_byte_level(vocabulary),
    }


def save_vocabulary(vocabulary: Any, directory: pathlib.Path) -> None:
    """Puts the tokenizer's files beside a run's checkpoints, so that they travel with them."""
    folder, pieces = vocabularies.tokenizer_folder(vocabulary), None
    if folder is None:
        pieces = vocabularies.sentencepiece_file(vocabulary)
    sources = {name: folder / name for name in TOKENIZER_FILES} if folder is not None else {}
    if pieces is not None:
        sources = {VOCABULARY_FILE: pathlib.Path(pieces)}
    for name, source in sources.items():
        target = directory / name
        if not processes.is_primary_process() or not source.exists():
            continue
        content = source.read_bytes()
        if not target.is_file() or target.read_bytes() != content:  # absent, or damaged
            replace_file(target, content)


def open_model(role: str, checkpoint: str, step: int | str | None = None) -> Checkpoint:
    """Opens a checkpoint of any format; nothing but its headers is read.

    Args:
      role: 'STUDENT', 'TEACHER' or 'MODEL', for messages.
      checkpoint: a run directory or step folder, a Hugging Face directory, a T5X checkpoint.
      step: which step of a run, see `gkd.checkpoints.params.restore_params`.

    Raises:
      FileNotFoundError, ValueError: in one line that names the role.
    """
    try:
        return formats.open_checkpoint(checkpoint, step)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{role}: {error}") from error


def load_model(
    role: str,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    task: TaskSpec,
    architecture: Any,
    checkpoint: str | None,
    step: int | str | None = None,
    *,
    dtype: str | None = None,
    params_dtype: str | None = None,
    stacked_layers: bool | None = None,
    remat: bool | None = None,
    with_params: bool = True,
) -> LoadedModel:
    """Builds a model and reads its parameters onto the mesh.

    Args:
      role: 'STUDENT' or 'TEACHER', for messages and macros.
      mesh: from `make_mesh`.
      rules: logical axis -> mesh axis.
      task: its vocabulary must be the one the checkpoint was trained with.
      architecture: the T5Config of a model that starts at random (a checkpoint brings its own), or
        a T5XModel (`gkd.models.t5x_adapter`), which runs with a checkpoint's parameters too.
      checkpoint: see `open_model`; None for random.
      step: which of a run's steps, see `open_model`.
      dtype: of the computation, where it should not be the architecture's own.
      params_dtype: of the parameters; None is float32.
      stacked_layers, remat: how to run it (`T5Config`), where not as its architecture says.
      with_params: false leaves the parameters to `initial_params`.

    Returns:
      The model.

    Raises:
      ValueError: neither architecture nor checkpoint; another vocabulary; a model too small for it.
      FileNotFoundError: the checkpoint does not exist.
    """
    if checkpoint is None and architecture is None:
        raise InvalidValue(f"set {role} (a checkpoint) or {_macro(role)} (an architecture)")
    opened = None
    if checkpoint is not None:
        opened = open_model(role, checkpoint, step)
        check_vocabulary(role, opened, task)
    ways = {"dtype": dtype, "stacked_layers": stacked_layers, "remat": remat}
    config, model = _build(role, opened, architecture, ways)
    if config.vocab_size < task.vocabulary.vocab_size:
        raise InvalidValue(
            f"{role} has {config.vocab_size} ids, the vocabulary of task {task.name} "
            f"{task.vocabulary.vocab_size}: set {_macro(role)}'s vocab_size to that or more"
        )
    loaded = _placed(config, model, mesh, rules, opened and str(opened.path), params_dtype)
    loaded = dataclasses.replace(loaded, chosen=opened.chosen if opened else "")
    if with_params and opened is not None:
        return dataclasses.replace(loaded, params=_read_params(loaded, opened))
    return loaded


def load_checkpoint(
    opened: Checkpoint, mesh: Mesh, rules: Mapping[str, str | None], dtype: str | None = None
) -> LoadedModel:
    """Reads an opened checkpoint onto the mesh to be used as it is, without a task.

    Args:
      opened: from `open_model`.
      mesh, rules: where it runs.
      dtype: of parameters and computation; by default `inference_dtype`.
    """
    dtype = dtype or inference_dtype(mesh)
    config, model = _build("MODEL", opened, None, {"dtype": dtype})
    loaded = _placed(config, model, mesh, rules, str(opened.path), dtype)
    return dataclasses.replace(loaded, params=_read_params(loaded, opened))


def inference_dtype(mesh: Mesh) -> str:
    """The dtype of models that do not learn: bfloat16 on accelerators, float32 on CPU."""
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def inference_ways(dtype: str | None, mesh: Mesh) -> dict[str, str]:
    """How a model that does not learn is loaded: `load_model`'s dtype and params_dtype."""
    dtype = dtype or inference_dtype(mesh)
    return {"dtype": dtype, "params_dtype": dtype}


def is_module(architecture: Any) -> bool:
    """Whether an architecture is a T5X module, which says itself how it runs."""
    return not isinstance(architecture, T5Config | None)


def vocabulary_of(opened: Checkpoint, given: str | None = None) -> Any:
    """The vocabulary to use a checkpoint with.

    Args:
      opened: the checkpoint.
      given: a sentencepiece model file, a checkpoint's folder, or 'bytes'; None takes the
        checkpoint's own, or else what the environment's GKD_VOCABULARY names, and reports that.

    Raises:
      FileNotFoundError: none is known, or the file does not exist.
      ValueError: the vocabulary has more ids than the model; a tokenizer that is not read.
    """
    if given == "bytes":
        vocabulary = vocabularies.byte_level()
    elif given is not None:
        vocabulary = vocabularies.t5(given, _sentinels(opened))
    else:
        vocabulary = own_vocabulary(opened)
        if vocabulary is None:
            vocabulary = vocabularies.t5(None, _sentinels(opened))
            _LOG.warning(
                "%s names no vocabulary: the one of %s is taken on trust",
                opened.path, vocabularies.ENVIRONMENT,
            )  # fmt: skip
    vocabularies.valid_ids(vocabulary, opened.config.vocab_size)  # says what does not fit
    return vocabulary


def own_vocabulary(opened: Checkpoint) -> Any:
    """The vocabulary that a checkpoint's own files describe; None where they describe none.

    Raises:
      ValueError: a tokenizer that is damaged or of a kind that is not read.
    """
    files = opened.tokenizer
    if files is None or files.is_empty:
        return vocabularies.byte_level() if opened.bytes_vocabulary else None
    if opened.bytes_vocabulary and not files.is_bytes:
        return vocabularies.byte_level()
    return vocabularies.from_files(files, _sentinels(opened))


def _sentinels(opened: Checkpoint) -> int:
    """How many ids follow the sentencepiece's own: what the run said, else what its family has."""
    described = (opened.description or {}).get("vocabulary")
    alone = opened.tokenizer is not None and opened.tokenizer.names == (VOCABULARY_FILE,)
    if described and opened.vocabulary is not None and alone:
        own = vocabularies.sentencepiece(str(opened.vocabulary)).vocab_size
        return described["size"] - own
    return opened.sentinels


def _macro(role: str) -> str:
    """The macro of a role's architecture."""
    return "REWARD_ARCHITECTURE" if role == "REWARD_MODEL" else f"{role}_MODEL"


def _build(role, opened, architecture, ways):
    """(config, model functions) of a checkpoint, an architecture, or both for a T5X module."""
    if is_module(architecture):
        if any(value is not None for value in ways.values()):
            wrong = next(name for name, value in ways.items() if value is not None)
            raise InvalidValue(f"{_macro(role)} is a T5X module: set its {wrong} in its own gin")
        if opened is not None:
            check_tensors(opened.tensors, architecture.config, opened.path)
        return architecture.config, architecture.model
    config = architecture
    if opened is not None:
        _check_agrees(role, opened, architecture)
        config = opened.config
        saved = (opened.description or {}).get("model", {})
        own = {name: saved.get(name, False) for name in ("stacked_layers", "remat")}
        config = dataclasses.replace(config, **own)
    config = dataclasses.replace(config, **{k: v for k, v in ways.items() if v is not None})
    return config, as_seq2seq(config)


def _check_agrees(role, opened, architecture) -> None:
    """A checkpoint brings its architecture; one named beside it must be the same."""
    how = {"dtype", "stacked_layers", "remat", "dropout_rate"}  # to run it, not what it is
    for field in dataclasses.fields(T5Config):
        if architecture is None or field.name in how or not field.compare:
            continue
        wanted, found = (getattr(c, field.name) for c in (architecture, opened.config))
        if wanted != found:
            raise InvalidValue(
                f"{_macro(role)} has {field.name}={wanted}, but the checkpoint {opened.path} "
                f"{found}: leave {_macro(role)} at None, or choose the checkpoint it describes"
            )


def _placed(config, model, mesh, rules, checkpoint, params_dtype=None) -> LoadedModel:
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    rules = meshes.rules_of_model(rules, config.num_heads, mesh)
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    shapes = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, params_dtype or leaf.dtype, sharding=to),
        nn.meta.unbox(boxed),
        shardings,
    )
    return LoadedModel(config, model, shardings, None, checkpoint, shapes)


def _read_params(loaded: LoadedModel, opened: Checkpoint) -> Any:
    return read_onto(opened.tensors, loaded.shapes)


def with_dropout(loaded: LoadedModel, rate: float) -> LoadedModel:
    """The same model with this dropout rate; parameters do not depend on it."""
    if rate == loaded.config.dropout_rate:
        return loaded
    config = dataclasses.replace(loaded.config, dropout_rate=rate)
    return dataclasses.replace(loaded, config=config, model=as_seq2seq(config))


def initial_params(loaded: LoadedModel, seed: int) -> Any:
    """The student's parameters at step 0: its checkpoint's, or random ones made on the mesh."""
    if loaded.checkpoint is not None:
        return _read_params(loaded, open_model("STUDENT", loaded.checkpoint))
    key = jax.random.PRNGKey(seed)
    make = jax.jit(
        lambda key: nn.meta.unbox(loaded.model.init(key)), out_shardings=loaded.shardings
    )
    return make(key)


def shared_valid_ids(student: LoadedModel, teacher: LoadedModel | None, task: TaskSpec) -> Any:
    """The mask of usable ids, one for both models: bool [V] on the device.

    Raises:
      ValueError: the two models' tables differ in size.
    """
    size = student.config.vocab_size
    if teacher is not None and teacher.config.vocab_size != size:
        raise InvalidValue(
            f"teacher vocabulary has {teacher.config.vocab_size} ids, student {size}: distillation "
            "needs one vocabulary; use a student with the teacher's table size"
        )
    return jnp.asarray(np.asarray(vocabularies.valid_ids(task.vocabulary, size)))


def check_vocabulary(role: str, opened: Checkpoint, task: Any) -> None:
    """Compares a checkpoint's vocabulary with the task's, piece by piece where both are known.

    Raises:
      ValueError: they differ; a tokenizer that is not read.
    """
    difference = _vocabulary_difference(role, opened, task.vocabulary)
    if difference:
        raise InvalidValue(
            f"{role} {opened.path} has another vocabulary than task {task.name}: {difference}; "
            "distillation needs one vocabulary, use the task's with which that model was trained"
        )


def _vocabulary_difference(role: str, opened: Checkpoint, wanted: Any) -> str | None:
    """What differs, in words; None where nothing does, or nothing is known of the checkpoint's."""
    described = (opened.description or {}).get("vocabulary")
    here = describe_vocabulary(wanted)
    if described and (described["size"], described["sha256"]) == (here["size"], here["sha256"]):
        return None
    own = own_vocabulary(opened)
    if own is None and described and here["bytes"]:
        return "one is bytes, the other pieces"
    if own is not None:
        are_bytes = [vocabularies.is_byte_level(own), here["bytes"]]
        if all(are_bytes):
            return None
        folders = [vocabularies.tokenizer_folder(one) is not None for one in (own, wanted)]
        if any(are_bytes) and not any(folders):
            return "one is bytes, the other pieces"
        if vocabularies.sentencepiece_file(own) is not None:  # sentinels are not compared
            own = vocabularies.sentencepiece(str(opened.vocabulary), wanted.extra_ids)
        difference = vocabularies.same_vocabulary(own, wanted)
        if difference and folders[0]:
            return f"{difference} (set {vocabularies.ENVIRONMENT} to {opened.tokenizer.folder})"
        if difference or not described:
            return difference
    if described:
        return (
            f"the model's has {described['size']} ids (sha256 {described['sha256'][:12]}), "
            f"the task's {here['size']} ({here['sha256'][:12]})"
        )
    _LOG.warning("%s %s names no vocabulary: the task's is taken on trust", role, opened.path)
    return None

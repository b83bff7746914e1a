"""Loads the models of a run: architecture, parameters on the mesh, one vocabulary."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from gkd.checkpoints import formats
from gkd.checkpoints.tensors import Checkpoint, check_tensors, read_onto
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidValue, MissingPackage
from gkd.models.architecture import (
    EXECUTION_FIELDS,
    Architecture,
    check_architecture,
    with_ids_of,
)
from gkd.models.interface import Seq2SeqModel
from gkd.parallel import mesh as meshes
from gkd.parallel.model_sharding import UNSHARDED, ModelSharding
from gkd.runs import checkpoint_vocabulary
from gkd.runs.progress import announce
from gkd.vocabularies import vocabularies

# Layers of a stack from which on they are run in one scan: the step of XL and small, of 24 and 8
# layers, compiles for a TPU in 36 s, and in 71 s where the student's are not stacked.
DEEP = 8
_STANDS_FOR: ContextVar[str | None] = ContextVar("platform of fake devices", default=None)
_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model of a run.

    Attributes:
      config: the architecture.
      model: the functions, bound to the mesh.
      shardings: the parameters' shardings.
      params: parameters on the mesh; None for a student, whose parameters live in the training
        state.
      opened: the checkpoint from which it is initialised; None for random initialisation.
      shapes: `jax.ShapeDtypeStruct`s of the parameters, with dtypes and shardings.
      sharding: the mesh and rules to which the functions are bound.
    """

    config: Architecture
    model: Seq2SeqModel
    shardings: Any
    params: Any
    opened: Checkpoint | None = None
    shapes: Any = None
    sharding: ModelSharding = UNSHARDED

    @property
    def checkpoint(self) -> str | None:
        """The name to open it again: a folder (a run's step folder) or OWNER/NAME@COMMIT."""
        return None if self.opened is None else self.opened.name

    @property
    def digest(self) -> str | None:
        """The identity of a run's step when it was opened, see `hashes.digest_of`; else None."""
        return None if self.opened is None else self.opened.digest

    @property
    def chosen(self) -> str:
        """The step that was chosen of a run and the reason; empty for other formats."""
        return "" if self.opened is None else self.opened.chosen


def describe(config: Architecture, vocabulary: Any) -> dict[str, Any]:
    """Describes architecture and vocabulary as the JSON that a checkpoint holds."""
    known = vocabulary is not None
    return {
        "model": config.describe(),
        "vocabulary": checkpoint_vocabulary.describe_vocabulary(vocabulary) if known else None,
    }


def open_model(role: str, checkpoint: str, step: int | str | None = None) -> Checkpoint:
    """Opens a checkpoint of any format, reading only its headers.

    Args:
      role: 'STUDENT', 'TEACHER' or 'MODEL', for messages.
      checkpoint: path of a run directory or step folder, a Hugging Face directory, or a T5X
        checkpoint; or the name of a model on the Hugging Face Hub, OWNER/NAME[@REVISION].
      step: step of a run, see `gkd.checkpoints.params.restore_params`.

    Returns:
      The opened checkpoint.

    Raises:
      FileNotFoundError: a file is missing; the text names the role.
      ValueError: a file is damaged or does not fit; the text names the role.
      ImportError: the weights are PyTorch's, which is not installed; the text names the role.
    """
    try:
        return formats.open_checkpoint(checkpoint, step)
    except (FileNotFoundError, ValueError, MissingPackage) as error:
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
      mesh: device mesh of `make_mesh`.
      rules: sharding rules, logical axis -> mesh axis.
      task: the task, whose vocabulary must be the one that the checkpoint was trained with.
      architecture: architecture, see `gkd.models.architecture`; None takes the checkpoint's. A T5X
        module runs with the checkpoint's parameters; any other must equal the checkpoint's.
      checkpoint: path of a checkpoint, see `open_model`; None for random initialisation.
      step: step of a run, see `open_model`.
      dtype: dtype of the computation; None is `default_dtype`, whatever the architecture's own.
      params_dtype: dtype of the parameters; None is float32.
      stacked_layers: runs the layers in one scan; None does so for `DEEP` models but on CPU, and
        where the architecture itself does.
      remat: execution option (`T5Config`); None is the architecture's own.
      with_params: read the parameters; otherwise they are left to `initial_params`.

    Returns:
      The model.

    Raises:
      ValueError: neither architecture nor checkpoint is given, the vocabulary is another one, or
        the model is too small for it.
      FileNotFoundError: the checkpoint does not exist.
    """
    if checkpoint is None and architecture is None:
        raise InvalidValue(f"set {role} (a checkpoint) or {_macro(role)} (an architecture)")
    opened = None
    if checkpoint is not None:
        announce(f"loading {role} {checkpoint}")
        opened = open_model(role, checkpoint, step)
        checkpoint_vocabulary.check_vocabulary(role, opened, task)
    if not has_fixed_execution(architecture):
        dtype = dtype or default_dtype(mesh)
    execution = {"dtype": dtype, "stacked_layers": stacked_layers, "remat": remat}
    config = _architecture(role, opened, architecture, execution, mesh)
    if config.vocab_size < task.vocabulary.vocab_size:
        raise InvalidValue(
            f"{role} has {config.vocab_size} ids, the vocabulary of task {task.name} "
            f"{task.vocabulary.vocab_size}: set {_macro(role)}'s vocab_size to that or more"
        )
    config = checkpoint_vocabulary.with_special_ids(role, config, task.vocabulary)
    loaded = _placed(config, mesh, rules, opened, params_dtype)
    if with_params and opened is not None:
        return dataclasses.replace(loaded, params=_read_params(loaded))
    return loaded


def load_checkpoint(
    opened: Checkpoint,
    mesh: Mesh,
    rules: Mapping[str, str | None],
    dtype: str | None = None,
    vocabulary: Any = None,
) -> LoadedModel:
    """Reads an opened checkpoint onto the mesh for inference, without a task.

    Args:
      opened: checkpoint of `open_model`.
      mesh, rules: device mesh and sharding rules.
      dtype: dtype of parameters and computation; by default `default_dtype`.
      vocabulary: vocabulary with the special ids; None keeps the checkpoint's own.

    Returns:
      The model.
    """
    dtype = dtype or default_dtype(mesh)
    config = _architecture("MODEL", opened, None, {"dtype": dtype}, mesh)
    if vocabulary is not None:
        config = checkpoint_vocabulary.with_special_ids("MODEL", config, vocabulary)
    announce(f"loading MODEL {opened.name}")
    loaded = _placed(config, mesh, rules, opened, dtype)
    return dataclasses.replace(loaded, params=_read_params(loaded))


def default_dtype(mesh: Mesh) -> str:
    """Chooses the dtype of a model's computation: bfloat16, or float32 on CPU.

    Args:
      mesh: device mesh, perhaps of devices that are not here.
    """
    return "float32" if _on_cpu(mesh) else "bfloat16"


def _on_cpu(mesh) -> bool:
    return (_STANDS_FOR.get() or mesh.devices.flat[0].platform) == "cpu"


@contextlib.contextmanager
def standing_for(platform: str | None) -> Iterator[None]:
    """Chooses dtypes and stacks of models for another platform, for whose devices CPUs stand.

    Args:
      platform: JAX's name of the platform, 'gpu'; None is the devices' own.
    """
    token = _STANDS_FOR.set(platform)
    try:
        yield
    finally:
        _STANDS_FOR.reset(token)


def inference_dtypes(dtype: str | None, mesh: Mesh, architecture: Any) -> dict[str, str | None]:
    """Returns the arguments dtype and params_dtype of `load_model` for a model without training.

    Args:
      dtype: 'float32' or 'bfloat16'; None chooses by the device.
      mesh: device mesh.
      architecture: the model's; one that fixes how it runs keeps its own dtypes. None: any other.
    """
    if has_fixed_execution(architecture):
        return {"dtype": dtype}  # which is refused where it is one
    dtype = dtype or default_dtype(mesh)
    return {"dtype": dtype, "params_dtype": dtype}


def has_fixed_execution(architecture: Any) -> bool:
    """Checks if an architecture fixes how it runs (a T5X module), so that no dtype may be set."""
    return isinstance(architecture, Architecture) and not architecture.configurable


def _macro(role: str) -> str:
    """The macro of a role's architecture."""
    return "REWARD_ARCHITECTURE" if role == "REWARD_MODEL" else f"{role}_MODEL"


def _architecture(role, opened, architecture, execution, mesh) -> Architecture:
    """The architecture of a checkpoint or the one given, with its execution fields."""
    if architecture is not None:
        architecture = check_architecture(architecture, _macro(role))
    if opened is None:
        config = architecture
    elif has_fixed_execution(architecture):
        check_tensors(opened.tensors, architecture, opened.path)
        config = architecture
    else:
        _check_agrees(role, opened, architecture)
        saved = (opened.description or {}).get("model", {})
        own = {name: saved.get(name, False) for name in ("stacked_layers", "remat")}
        config = opened.config.with_execution(**own)
    deep = max(config.sizes.encoder_layers, config.sizes.decoder_layers) >= DEEP
    if execution.get("stacked_layers") is None and deep and config.configurable:
        # On CPU, copying each layer's parameters out of the stack takes longer than it saves.
        execution = execution | {"stacked_layers": None if _on_cpu(mesh) else True}
    try:
        return config.with_execution(**execution)
    except InvalidValue as error:
        raise InvalidValue(f"{_macro(role)}: {error}") from error


def _check_agrees(role, opened, architecture) -> None:
    """A checkpoint brings its architecture; one named beside it must be the same."""
    if architecture is None:
        return
    kinds = [type(each).__name__ for each in (architecture, opened.config)]
    if kinds[0] != kinds[1]:
        raise InvalidValue(
            f"{_macro(role)} is a {kinds[0]}, but the checkpoint {opened.path} a {kinds[1]}: leave "
            f"{_macro(role)} at None, or choose the checkpoint it describes"
        )
    architecture = with_ids_of(architecture, opened.config)
    for field in dataclasses.fields(architecture):
        if field.name in EXECUTION_FIELDS or not field.compare:
            continue
        wanted, found = (getattr(c, field.name) for c in (architecture, opened.config))
        if wanted != found:
            raise InvalidValue(
                f"{_macro(role)} has {field.name}={wanted}, but the checkpoint {opened.path} "
                f"{found}: leave {_macro(role)} at None, or choose the checkpoint it describes"
            )


def _placed(config, mesh, rules, opened, params_dtype=None) -> LoadedModel:
    sharding = meshes.model_sharding(mesh, rules)
    model = config.build(sharding)
    boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0))
    rules = meshes.rules_of_model(rules, config.sizes.divided_heads, mesh)
    shardings = meshes.parameter_shardings(mesh, boxed, rules)
    shapes = jax.tree.map(
        lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, params_dtype or leaf.dtype, sharding=to),
        nn.meta.unbox(boxed),
        shardings,
    )
    return LoadedModel(config, model, shardings, None, opened, shapes, sharding)


def _read_params(loaded: LoadedModel) -> Any:
    return read_onto(loaded.opened.tensors, loaded.shapes)


def with_dropout(loaded: LoadedModel, rate: float) -> LoadedModel:
    """Changes a model's dropout rate, on which its parameters do not depend."""
    if rate == loaded.config.dropout_rate:
        return loaded
    config = loaded.config.with_execution(dropout_rate=rate)
    return dataclasses.replace(loaded, config=config, model=config.build(loaded.sharding))


def initial_params(loaded: LoadedModel, seed: int) -> Any:
    """Returns the student's parameters at step 0: its checkpoint's, or random ones on the mesh."""
    if loaded.opened is not None:
        return _read_params(loaded)
    key = jax.random.PRNGKey(seed)
    make = jax.jit(
        lambda key: nn.meta.unbox(loaded.model.init(key)), out_shardings=loaded.shardings
    )
    return make(key)


def with_scored_ids(loaded: LoadedModel, size: int) -> LoadedModel:
    """Makes a model score as many ids as another: of one vocabulary, tables may differ in size.

    Qwen2.5's have 151936 rows or 152064, for 151665 tokens: the rows behind the vocabulary are
    filling, which no sample and no loss uses.

    Args:
      loaded: a model that only scores or generates; its parameters stay as they are.
      size: number of logits of a position from now on, the vocabulary's size or more.
    """
    if loaded.config.vocab_size == size:
        return loaded
    head = loaded.model.head
    model = dataclasses.replace(
        loaded.model, head=lambda params: head(params).with_size(size), vocab_size=size
    )
    return dataclasses.replace(loaded, model=model)


def scored_valid_ids(student: LoadedModel, task: TaskSpec) -> Any:
    """Computes the `valid_ids` of a run's models.

    Args:
      student: the student; its teacher scores as many ids, see `with_scored_ids`.
      task: the task, with the vocabulary.

    Returns:
      bool [V] on the device.
    """
    size = student.config.vocab_size
    return jnp.asarray(np.asarray(vocabularies.valid_ids(task.vocabulary, size)))

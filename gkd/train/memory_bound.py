"""A lower bound of the memory that a run's step needs, in closed form, before anything is made."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import jax
import numpy as np

from gkd.errors import InvalidValue
from gkd.models.layers import query_block
from gkd.train.batch_layout import part_sizes
from gkd.train.model_flops import prompt_length, taught_shape
from gkd.train.step_program import StepProgram

_GIGA = 1e9
_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def needed(program: StepProgram) -> float:
    """Bytes that the step holds at once at the very least, over all devices.

    Parameters, their gradients, the optimizer's state, teacher, reward model and the base of
    adapters, and one layer's attention weights in float32; a real step needs more.
    """
    state = program.state.abstract
    models = [program.frozen_teacher, program.reward_model]
    if program.experiment.student.lora is not None:  # the adapters' base
        models.append(program.student)
    others = [m.shapes for m in models if m is not None]
    held = _bytes(state) + _bytes(state.params) + sum(map(_bytes, others))
    models = [m for m in (program.student, program.teacher) if m is not None]
    return held + max(_attention(program, model) for model in models)


def _attention(program, loaded) -> float:
    """The largest layer's attention weights [rows, heads, queries, keys] of a microbatch.

    Of long rows, as many queries as a block has. Of the rows' parts, one may be as long as the
    batch.
    """
    rows, target = program.batch.decoder_target_tokens.shape
    together = rows // part_sizes(program).parts
    source, written = prompt_length(program, loaded), rows * program.method.samples
    if loaded is program.teacher:
        written, target, source = taught_shape(program)
    encoding = together * query_block(source) * source
    decoding = written * query_block(target) * max(target, source)
    weights = max(encoding, decoding)
    heads = loaded.config.sizes.num_heads
    return 4.0 * heads * weights / program.experiment.batches.microbatches


def _bytes(tree: Any) -> float:
    leaves = jax.tree.leaves(tree)
    return float(sum(np.prod(leaf.shape, dtype=float) * leaf.dtype.itemsize for leaf in leaves))


def available(devices: Any) -> float | None:
    """Bytes that the devices have together; None where they do not report it.

    Args:
      devices: devices of the mesh; those of one host share its memory where they are CPUs.
    """
    hosts = {device.process_index for device in devices.flat}
    if all(device.platform == "cpu" for device in devices.flat):
        return len(hosts) * _host_memory()
    limits = [(device.memory_stats() or {}).get("bytes_limit") for device in jax.local_devices()]
    return None if None in limits else min(limits) * devices.size


def _host_memory() -> float:
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        return min(memory, float(_CGROUP.read_text()))
    except (OSError, ValueError):  # no limit
        return memory


def check_fits(program: StepProgram) -> None:
    """Refuses a step that cannot run here, before it takes all memory.

    Raises:
      ValueError: in one line.
    """
    has, needs = available(program.mesh.devices), needed(program)
    if has is None or needs <= has:
        return
    batch = program.batch
    rows, source = batch.encoder_input_tokens.shape
    target = batch.decoder_target_tokens.shape[1]
    raise InvalidValue(
        f"the step needs at least {needs / _GIGA:,.0f} GB, the machine has {has / _GIGA:,.0f} GB: "
        f"INPUT_LENGTH is {source}, TARGET_LENGTH {target}, BATCH_SIZE {rows}, MICROBATCHES "
        f"{program.experiment.batches.microbatches}; shorten the first two, raise MICROBATCHES, or "
        "use a smaller batch or model"
    )


def remark(program: StepProgram) -> str:
    """A dry run's line where the step does not fit here: the run may be another machine's."""
    try:
        check_fits(program)
    except InvalidValue as error:
        return f"dry run: warning: it cannot run on this machine: {error}\n"
    return ""

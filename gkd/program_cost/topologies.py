"""The chips of slices that are not here, to compile for."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax

from gkd.errors import InvalidValue, MissingPackage
from gkd.program_cost.roofline import CHIPS, Chip


def topology_chip(name: str) -> Chip:
    """What the chips of a topology can do, as the table has it; needs no libtpu.

    Raises:
      ValueError: as `topology_devices`, for what the name alone shows.
    """
    return CHIPS[_parts(name)[1]]


def topology_slices(name: str) -> int:
    """How many slices a topology has; needs no libtpu.

    Raises:
      ValueError: as `topology_chip`.
    """
    return _parts(name)[0]


def _parts(name):
    """How many slices, of which generation and shape: '2*v5e:4x4' -> (2, 'v5e', '4x4')."""
    slices, several, one = name.rpartition("*")
    generation, _, shape = one.partition(":")
    if generation not in CHIPS or not shape:
        known = ", ".join(generation for generation in CHIPS)
        raise InvalidValue(
            f"topology is {name!r}: use GENERATION:SHAPE, v5e:4x4 or 2*v5e:4x4 for two such "
            f"slices, of {known}"
        )
    if several and (not slices.isdigit() or not int(slices) or generation == "cpu"):
        raise InvalidValue(f"topology is {name!r}: use a number of TPU slices, as 2*v5e:4x4")
    return int(slices or 1), generation, shape


def topology_devices(name: str) -> list[Any]:
    """The devices of a topology: 'v5e:4x4', '2*v5e:4x4' for two slices, 'cpu:8' for fake ones.

    Compiling for a TPU needs libtpu, of the version that jaxlib names, and no TPU. Call it before
    anything asks JAX for its devices: it keeps JAX from looking for accelerators.

    Raises:
      ValueError: an unknown generation, a shape that it does not have.
      ImportError: libtpu is not installed.
    """
    slices, generation, shape = _parts(name)
    jax.config.update("jax_platforms", "cpu")
    if generation == "cpu":
        return _fake(shape)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            "compiling for a TPU needs libtpu: pip install 'jax[tpu]', in the version of jax here"
        ) from error
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    one = f"{generation}:{shape}"
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=one, **options)
    except Exception as error:  # libtpu's own words, in several kinds of exception
        reason = " ".join(str(error).split())
        raise InvalidValue(f"topology {name} cannot be made: {reason}") from error
    return list(found.devices)


def _fake(count):
    if not count.isdigit() or not int(count):
        raise InvalidValue(f"topology is cpu:{count}: use a number of devices, as cpu:8")
    with contextlib.suppress(RuntimeError):  # they exist already
        jax.config.update("jax_num_cpu_devices", int(count))
    devices = jax.devices("cpu")
    if len(devices) < int(count):
        raise InvalidValue(f"topology is cpu:{count}: {len(devices)} devices are here")
    return devices[: int(count)]

"""Provides the devices of TPU slices to compile for, without such a slice."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import jax

from gkd.errors import InvalidValue, MissingPackage
from gkd.program_cost.roofline import CHIPS, ON_FAKE_DEVICES, Chip


def topology_chip(name: str) -> Chip:
    """Looks up the peak rates and the capacity of a topology's chips; needs no libtpu.

    Args:
      name: name of the topology, see `topology_devices`.

    Returns:
      The chip from the table `CHIPS`.

    Raises:
      ValueError: the name is not well formed.
    """
    return CHIPS[_parts(name)[1]]


def topology_slices(name: str) -> int:
    """Counts the slices of a topology; needs no libtpu.

    Args:
      name: name of the topology, see `topology_devices`.

    Returns:
      The number of slices, 1 unless the name begins with 'N*'.

    Raises:
      ValueError: the name is not well formed.

    >>> topology_slices("2*v5e:4x4")
    2
    """
    return _parts(name)[0]


def _parts(name):
    """Parses a name into slices, generation and shape: '2*v5e:4x4' -> (2, 'v5e', '4x4')."""
    slices, several, slice_name = name.rpartition("*")
    generation, _, shape = slice_name.partition(":")
    if generation not in CHIPS or not shape:
        known = ", ".join(generation for generation in CHIPS)
        raise InvalidValue(
            f"topology is {name!r}: use GENERATION:SHAPE, v5e:4x4 or 2*v5e:4x4 for two such "
            f"slices, of {known}"
        )
    if several and (not slices.isdecimal() or not int(slices) or generation in ON_FAKE_DEVICES):
        raise InvalidValue(f"topology is {name!r}: use a number of TPU slices, as 2*v5e:4x4")
    return int(slices or 1), generation, shape


def topology_devices(name: str) -> list[Any]:
    """Returns the devices of a topology for ahead-of-time compilation.

    Compiling for a TPU needs libtpu, in the version that jaxlib requires, and no TPU. Call this
    before anything initialises JAX's devices: it keeps JAX from looking for accelerators.

    Args:
      name: 'v5e:4x4', '2*v5e:4x4' for two slices, 'cpu:8' for fake devices, or 'h100:8', for
        which fake devices stand in.

    Returns:
      The devices, in the order of the topology.

    Raises:
      ValueError: the generation is unknown, or does not have the shape.
      ImportError: libtpu is not installed.
    """
    slices, generation, shape = _parts(name)
    jax.config.update("jax_platforms", "cpu")
    if generation in ON_FAKE_DEVICES:
        return _fake(generation, shape)
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        import libtpu  # noqa: F401
    except ImportError as error:
        raise MissingPackage(
            f"compiling for a TPU needs libtpu: pip install 'jax[tpu]=={jax.__version__}'"
        ) from error
    from jax.experimental import topologies

    options: dict[str, Any] = {"chip_config_name": "megacore"} if generation == "v4" else {}
    if slices > 1:
        options["num_slices"] = slices
    slice_name = f"{generation}:{shape}"
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=slice_name, **options)
    except Exception as error:  # libtpu's own words, in several kinds of exception
        reason = " ".join(str(error).split())
        raise InvalidValue(f"topology {name} cannot be made: {reason}") from error
    return list(topology.devices)


def _fake(generation, count):
    if not count.isdecimal() or not int(count):
        raise InvalidValue(
            f"topology is {generation}:{count}: use a number of devices, as {generation}:8"
        )
    with contextlib.suppress(RuntimeError):  # they exist already
        jax.config.update("jax_num_cpu_devices", int(count))
    devices = jax.devices("cpu")
    if len(devices) < int(count):
        raise InvalidValue(f"topology is {generation}:{count}: {len(devices)} devices are here")
    return devices[: int(count)]

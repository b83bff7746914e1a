"""Keeps JAX from looking for a TPU where only its compiler, libtpu, is installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import pathlib
from collections.abc import MutableMapping

_PCI_DEVICES = pathlib.Path("/sys/bus/pci/devices")
_GOOGLE = "0x1ae0"  # PCI vendor of every TPU chip


def skip_absent_tpus(
    environment: MutableMapping[str, str], pci_devices: pathlib.Path = _PCI_DEVICES
) -> None:
    """Chooses the CPU before JAX is imported, if libtpu is installed and no chip is here.

    `plan` compiles with libtpu on machines without a TPU; there, libtpu's search for chips prints
    errors into every other verb. Nothing is chosen where JAX_PLATFORMS is set, or where a plug-in
    for another accelerator is installed.

    Args:
      environment: the process's environment variables.
      pci_devices: folder of the PCI devices, each with a file `vendor`.
    """
    if environment.get("JAX_PLATFORMS") or not importlib.util.find_spec("libtpu"):
        return
    if importlib.util.find_spec("jax_plugins") or importlib.metadata.entry_points(
        group="jax_plugins"
    ):
        return
    vendors = (path.read_text().strip() for path in pci_devices.glob("*/vendor"))
    if _GOOGLE not in vendors:
        environment["JAX_PLATFORMS"] = "cpu"

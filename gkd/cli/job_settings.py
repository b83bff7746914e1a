"""Collects the settings that all processes of a job must share: bindings, code, libraries."""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
from typing import Any

import gkd

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def facts(verb: str, options: Any, reader: Any) -> dict[str, str]:
    """Collects the settings of a process as texts, for `job_messages.check_same`.

    Args:
      verb: verb of the command line.
      options: the verb's own options.
      reader: the `gin_files.GinReader` that holds all bindings.

    Returns:
      Texts by name; gs:// paths are not yet translated to a mount.
    """
    bindings = {binding.key: repr(binding.value) for binding in reader.final_bindings()}
    libraries = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {
        **bindings,
        **libraries,
        "verb": " ".join([verb, *(f"{name}={value}" for name, value in dict(options).items())]),
        "the code of gkd": code_digest(),
    }


def code_digest() -> str:
    """Computes the first digits of a hash over the paths and contents of gkd's source files."""
    root = pathlib.Path(gkd.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]

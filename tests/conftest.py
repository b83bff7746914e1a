"""Test session set-up: eight fake CPU devices, runtime shape checks, the shared fixtures."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_EIGHT = "--xla_force_host_platform_device_count=8"
if _EIGHT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT}".strip()

from jaxtyping import install_import_hook  # noqa: E402

# Every public signature of gkd is checked at run time, in tests only.
install_import_hook("gkd", "beartype.beartype")

import pytest  # noqa: E402

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared():
    """The folder of golden outputs and real text; tests that need it skip where it is absent."""
    folder = pathlib.Path(os.environ.get("GKD_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs the shared fixtures: no {folder}/golden (set GKD_SHARED)")
    return folder

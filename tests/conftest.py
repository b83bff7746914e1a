"""Test session set-up: eight fake CPU devices, runtime shape checks, the shared fixtures."""

import contextlib
import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_EIGHT = "--xla_force_host_platform_device_count=8"
if _EIGHT not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT}".strip()

# Compiling is most of the suite's time: compile quickly, and the same program once. Tests that look
# into a compiled program ask for the `optimized` fixture.
REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

from beartype import BeartypeConf  # noqa: E402
from beartype.claw import beartype_package  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Every signature of gkd is checked at run time, in tests only: by jaxtyping where arrays have
# declared shapes, elsewhere by beartype alone, whose calls cost a tenth.
SHAPED = tuple(
    ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)
    for path in sorted((REPOSITORY / "gkd").rglob("*.py"))
    if path.parent.name in ("models", "distill", "decode", "parallel")
    or "from jaxtyping" in path.read_text()
)
install_import_hook(list(SHAPED), "beartype.beartype")
beartype_package("gkd", conf=BeartypeConf(claw_is_pep526=False, claw_skip_package_names=SHAPED))

import gin  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

from gkd.distill import divergence_records  # noqa: E402
from tests import compilation  # noqa: E402

compilation.compile_quickly()

# Tracing makes many objects that stay: looking through them for garbage is a twentieth of the time.
gc.freeze()
gc.set_threshold(100_000)

# Programs that tests start: collecting doctests would run them.
collect_ignore = ["checkpoints/saving_program.py", "parallel/rows_program.py"]


@pytest.fixture
def optimized():
    """Compiles as a user's process would: for tests that measure or read the compiled program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def one_device():
    """Runs on one device, where the mesh is not what is tested."""
    with compilation.devices(1):
        yield


@pytest.fixture(scope="session")
def shared():
    """The folder of golden outputs and real text; tests that need it skip where it is absent."""
    folder = pathlib.Path(os.environ.get("GKD_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip(f"needs the shared fixtures: no {folder}/golden (set GKD_SHARED)")
    return folder


@pytest.fixture(scope="module", autouse=True)
def as_in_a_new_process(request):
    """Gives every module gin unconfigured, and gkd's own divergences: pages' modules add theirs."""
    folder = request.path.relative_to(REPOSITORY).parts[1]  # of tests or gkd
    gin.clear_config()  # also unlocks it
    registered = divergence_records.registered_divergences()
    own = [record for record in registered if record.function.__module__.startswith("gkd.")]
    divergence_records._REGISTERED[:] = registered if folder == "docs" else own
    # Compiling a step of `plan` quickly never ends.
    with compilation.as_usual() if folder in ("plan", "program_cost") else contextlib.nullcontext():
        yield
    if folder != "docs":  # gkd's own may be imported only now
        found = divergence_records.registered_divergences()
        new = [
            one for one in found if one not in registered and one.function.__module__[:4] == "gkd."
        ]
        divergence_records._REGISTERED[:] = [*registered, *new]
    gin.clear_config()

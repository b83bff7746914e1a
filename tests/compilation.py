"""What makes programs of tests compile quickly: options of the compiler, and few devices."""

import contextlib

import jax
import pytest
from jax._src import compiler

from gkd.parallel import mesh as meshes

# Not for all programs, by XLA_FLAGS: some never end, optimized ones and those of `plan`.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
FLAGS = " ".join(f"--{name}={str(value).lower()}" for name, value in QUICK.items())


_quick = True


@contextlib.contextmanager
def as_usual():
    """Compiles without these options."""
    global _quick
    _quick = False
    yield
    _quick = True


def compile_quickly():
    """Adds these options, from now on, to those of every program whose optimizations are off."""
    usual = compiler.get_compile_options

    def with_options(*args, **kwargs):
        options = usual(*args, **kwargs)
        level = options.executable_build_options.debug_options.xla_backend_optimization_level
        if _quick and level == 0:
            options.env_option_overrides = [*options.env_option_overrides, *QUICK.items()]
        return options

    compiler.get_compile_options = with_options


@contextlib.contextmanager
def devices(count):
    """Runs on the first devices only: a program of eight takes twice as long to compile."""
    make, first = meshes.make_mesh, jax.devices()[:count]

    def mesh(data=0, model=1, devices=None):
        return make(data, model, first if devices is None else devices)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "make_mesh", mesh)
        yield

"""Compiler options of tests: a program of no optimizations compiles in a third of the time."""

from jax._src import compiler

# Not for all programs, by XLA_FLAGS: optimized ones take far longer to compile with them.
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def compile_quickly():
    """Adds these options, from now on, to those of every program whose optimizations are off."""
    usual = compiler.get_compile_options

    def with_options(*args, **kwargs):
        options = usual(*args, **kwargs)
        if options.executable_build_options.debug_options.xla_backend_optimization_level == 0:
            options.env_option_overrides = [*options.env_option_overrides, *QUICK.items()]
        return options

    compiler.get_compile_options = with_options

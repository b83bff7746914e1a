"""Measures this machine's limits: float32 matrix products and reading memory, all cores."""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.workloads import Machine

# (rows, shared, columns) of products: a large cube, and what the workloads' encoders multiply.
_PRODUCTS = ((3072, 3072, 3072), (2048, 512, 1024), (2048, 768, 2048))
_READ_BYTES = 2**29  # a thread: far more than any cache


def measure(repeats: int = 5) -> Machine:
    """Measures the best of several products by NumPy's BLAS and XLA, and of several reads.

    Neither library is the faster one on every processor (an old OpenBLAS may be held to AVX2).
    """
    flops = max(_products(shape, repeats) for shape in _PRODUCTS)
    threads = os.cpu_count() or 1
    vectors = [np.ones(_READ_BYTES // 4, np.float32) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(np.max, vectors)), repeats)
    return Machine(flops, threads * _READ_BYTES / seconds)


def _products(shape, repeats):
    """Measures the FLOP/s of one matrix product with the faster library."""
    rows, shared, columns = shape
    generator = np.random.default_rng(0)
    left = generator.standard_normal((rows, shared), np.float32)
    right = generator.standard_normal((shared, columns), np.float32)
    product = np.empty((rows, columns), np.float32)
    with jax.default_device(jax.devices("cpu")[0]):
        compiled, operands = jax.jit(jnp.matmul), (jnp.asarray(left), jnp.asarray(right))
        by_xla = _fastest(lambda: compiled(*operands).block_until_ready(), repeats)
    by_numpy = _fastest(lambda: np.matmul(left, right, out=product), repeats)
    return 2.0 * rows * shared * columns / min(by_xla, by_numpy)


def _fastest(run, repeats):
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def spread(values: list[float]) -> dict[str, float]:
    """Median, minimum and maximum of measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}

"""Measures this machine's limits: float32 matrix products and reading memory, all cores."""

from __future__ import annotations

import concurrent.futures
import os
import statistics
import time

import numpy as np

from benchmarks.workloads import Machine

_SIDE = 3072
_READ_BYTES = 2**29  # a thread: far more than any cache


def measure(repeats: int = 5) -> Machine:
    """The best of several products with NumPy's BLAS, and of several parallel reads."""
    generator = np.random.default_rng(0)
    left, right = (generator.standard_normal((_SIDE, _SIDE), np.float32) for _ in range(2))
    product = np.empty_like(left)
    flops = 2.0 * _SIDE**3 / _fastest(lambda: np.matmul(left, right, out=product), repeats)
    threads = os.cpu_count() or 1
    vectors = [np.ones(_READ_BYTES // 4, np.float32) for _ in range(threads)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        seconds = _fastest(lambda: list(pool.map(np.max, vectors)), repeats)
    return Machine(flops, threads * _READ_BYTES / seconds)


def _fastest(run, repeats):
    times = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most of some measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}

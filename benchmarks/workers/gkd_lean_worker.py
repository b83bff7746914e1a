"""GKD's step in its form for little memory: layers stacked, the student rematerialised."""

from __future__ import annotations

import functools

from benchmarks.workers import gkd_worker
from benchmarks.workers.protocol import serve

if __name__ == "__main__":
    serve(functools.partial(gkd_worker.make, lean=True))

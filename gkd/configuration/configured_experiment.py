"""Makes the `Experiment` that gin's present bindings of `train` describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gin

from gkd.configuration.experiment import Experiment


def experiment_of(train: Callable[..., Any]) -> Experiment:
    """Returns the experiment that `train`, called without arguments, would run.

    Args:
      train: the verb's function; gin's state holds its bindings.
    """
    return experiment_and_directory(train)[0]


def experiment_and_directory(train: Callable[..., Any]) -> tuple[Experiment, str]:
    """Returns the experiment that `train` would run, and its run directory.

    Args:
      train: as in `experiment_of`.
    """
    bindings = gin.get_bindings(train)
    others = {n: v for n, v in bindings.items() if n not in ("model_dir", "dry_run")}
    return Experiment(**others), bindings["model_dir"]

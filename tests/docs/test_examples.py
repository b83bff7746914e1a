"""The example scripts run, and show what they say they show."""

import runpy

import numpy as np
import pytest

from tests.paths import REPOSITORY


def example(name):
    return runpy.run_path(str(REPOSITORY / "examples" / f"{name}.py"))


def test_distilling_an_own_model_prints_every_model(capsys):
    names = example("distil_own_model")
    assert set(names["main"](["--updates=6"])) == {
        "teacher", "SFT initialisation", "supervised KD (λ=0)", "on-policy GKD (λ=1)",
    }  # fmt: skip
    assert capsys.readouterr().out.count("%") == 4
    inputs, targets = names["patterns"]()
    assert len({tuple(row) for row in inputs}) == 512
    row = inputs.tolist().index([4, 2, 9])
    assert targets[row].tolist() == [4, 2, 9, 4, 2, 9, 4, 2, 1]


@pytest.mark.slow
def test_on_policy_distillation_of_an_own_model_gains_more():
    scores = example("distil_own_model")["main"]([])
    assert scores["on-policy GKD (λ=1)"] > scores["supervised KD (λ=0)"] + 5


def test_divergences_go_from_covering_modes_to_choosing_one(capsys):
    names = example("sweep_divergences")
    fitted = names["main"](["--updates=1500"])
    ids = np.arange(64.0)

    def moments(distribution):
        mean = np.sum(ids * distribution)
        return mean, np.sqrt(np.sum((ids - mean) ** 2 * distribution))

    def gaussian(mean, deviation):
        weights = np.exp(-0.5 * ((ids - mean) / deviation) ** 2)
        return weights / weights.sum()

    teacher = 0.6 * gaussian(20, 3) + 0.4 * gaussian(44, 3)
    # Forward KL to an exponential family matches its sufficient statistics.
    np.testing.assert_allclose(
        moments(gaussian(*fitted["forward_kl"])), moments(teacher), rtol=1e-3
    )
    np.testing.assert_allclose(fitted["reverse_kl"], (20, 3), rtol=0.01)
    deviations = [fitted[name][1] for name in ("jsd_0.1", "jsd_0.5", "jsd_0.9")]
    assert deviations == sorted(deviations, reverse=True) and deviations[0] > 4 * deviations[-1]
    assert "reverse_kl" in capsys.readouterr().out

"""Objects of an experiment: checked fields, and a method with single values changed."""

import dataclasses

import pytest

from gkd.configuration import experiment
from gkd.configuration.experiment import Method, MethodChanges, Schedule
from gkd.distill import divergences

JSD = Method(divergence=divergences.generalized_jsd, beta=0.1, on_policy_fraction=1.0)


def test_only_the_given_values_of_a_method_change():
    changed = experiment.changed(JSD, MethodChanges(on_policy_fraction=0.5))
    assert changed == dataclasses.replace(JSD, on_policy_fraction=0.5)
    assert experiment.changed(JSD, MethodChanges()) == JSD


def test_another_divergence_drops_the_betas_of_the_methods_own():
    changed = experiment.changed(JSD, MethodChanges(divergence=divergences.forward_kl))
    assert (changed.divergence, changed.beta) == (divergences.forward_kl, None)
    both = MethodChanges(divergence=divergences.generalized_jsd, beta=0.9)
    assert experiment.changed(JSD, both).beta == 0.9
    assert experiment.changed(JSD, MethodChanges(beta=0.9)).beta == 0.9


def test_every_field_is_checked_when_an_object_is_made():
    with pytest.raises(ValueError, match="on_policy_fraction is 1.5: use 1 or less"):
        Method(on_policy_fraction=1.5)
    with pytest.raises(ValueError, match="on_policy_fraction is 1.5"):
        MethodChanges(on_policy_fraction=1.5)
    with pytest.raises(TypeError, match="positional"):
        Schedule(10)
    for kind in experiment.OBJECTS:
        assert set(experiment.table(kind)) == {field.name for field in dataclasses.fields(kind)}


def test_an_interval_is_due_at_its_multiples_and_at_the_end():
    schedule = Schedule(train_steps=10)
    assert [step for step in range(1, 11) if schedule.due(step, 4)] == [4, 8, 10]
    assert [step for step in range(1, 11) if schedule.due(step, 0)] == [10]


@pytest.mark.parametrize(
    "metric, mode",
    [
        (None, "max"), ("rouge2", "max"), ("reference_log_prob", "max"), ("output_length", "max"),
        ("on_policy_forward_kl", "min"), ("reference_jsd_0.1", "min"), ("unfinished", "min"),
        ("long/on_policy_total_variation", "min"), ("reference_perplexity", "min"),
    ],
)  # fmt: skip
def test_the_best_of_a_divergence_is_the_smallest(metric, mode):
    assert Schedule(train_steps=1, best_metric=metric).mode_of_best == mode
    other = {"min": "max", "max": "min"}[mode]
    assert Schedule(train_steps=1, best_metric=metric, best_mode=other).mode_of_best == other

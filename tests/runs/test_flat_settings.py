"""Flat settings: fields of objects, a method under macros, and names of earlier versions."""

from gkd.runs.flat_settings import UNSET, default_of, flattened, parsed_bindings

OBJECTS = {
    "LAMBDA": "None",
    "BETA": "None",
    "METHOD": "@jsd/experiment.Method()",
    "DIVERGENCE": "None",
    "experiment.MethodChanges.on_policy_fraction": "%LAMBDA",
    "experiment.MethodChanges.divergence": "%DIVERGENCE",
    "experiment.MethodChanges.beta": "%BETA",
    "jsd/experiment.Method.on_policy_fraction": "0.5",
    "jsd/experiment.Method.divergence": "@divergences.generalized_jsd",
    "jsd/experiment.Method.beta": "0.1",
    "other/experiment.Method.beta": "0.9",
    "experiment.Student.checkpoint": "'runs/start'",
    "experiment.Batches.size": "8",
    "experiment.Evaluation.samples": "3",
    "train.train.student": "@experiment.Student()",
    "train.train.seed": "1",
}


def values(recorded, verb="train"):
    return {
        name: setting.value for name, setting in flattened(parsed_bindings(recorded), verb).items()
    }


def test_a_method_files_values_hold_where_no_macro_changes_them():
    own = values(OBJECTS)
    assert (own["on_policy_fraction"], own["beta"]) == (0.5, 0.1)
    assert repr(own["divergence"]) == "@divergences.generalized_jsd"
    assert (own["student"], own["batch_size"], own["seed"]) == ("runs/start", 8, 1)
    assert own["samples"] == 1, "an evaluation's samples are not the student's"
    changed = OBJECTS | {"LAMBDA": "1.0", "DIVERGENCE": "@divergences.forward_kl"}
    setting = flattened(parsed_bindings(changed), "train")
    assert (setting["on_policy_fraction"].value, setting["on_policy_fraction"].shown) == (
        1.0, "LAMBDA",
    )  # fmt: skip
    assert setting["beta"].value is None


def test_the_same_run_recorded_by_an_earlier_version_has_the_same_names():
    """Before objects, `train` had every setting itself, and modules other names."""
    earlier = {
        "train.train.on_policy_fraction": "%LAMBDA", "LAMBDA": "0.5", "train.train.beta": "0.1",
        "train.train.divergence": "@divergences.generalized_jsd", "train.train.seed": "1",
        "train.train.student": "'runs/start'", "train.train.batch_size": "8",
        "evaluate.evaluate.samples": "3", "gkd.data.rewards.rouge.stemmer": "True",
    }  # fmt: skip
    then, now = values(earlier), values(OBJECTS)
    assert then.pop("reward_functions.rouge.stemmer") is True
    assert {name: now[name] for name in then} == then
    assert values(OBJECTS, "evaluate")["samples"] == values(earlier, "evaluate")["samples"] == 3


def test_defaults_are_those_of_objects_and_functions():
    assert default_of("learning_rate", "train") == 3e-4
    assert default_of("student", "train") is None
    assert default_of("train_steps", "train") is UNSET
    assert default_of("optimizers.adamw.b1", "train") == 0.9
    assert default_of("t5.T5Config.no_such", "train") is UNSET

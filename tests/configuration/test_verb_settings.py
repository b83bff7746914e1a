"""Every parameter, default and option has a setting."""

import dataclasses
import inspect

import pytest

from gkd.cli.plain_arguments import ADD_ARGUMENTS
from gkd.configuration.setting_values import FunctionValue, check
from gkd.configuration.verb_settings import CONVERT, INFER, NEW, PLAN, SETTINGS
from gkd.convert.convert import convert
from gkd.infer.decode_options import Decoding
from gkd.infer.infer import InputSource, infer
from gkd.new.new import new
from gkd.plan.plan import plan
from tests.configuration.required import REQUIRED

VERBS = {"infer": INFER, "convert": CONVERT, "new": NEW, "plan": PLAN}
VERB_FUNCTIONS = {"infer": infer, "convert": convert, "new": new, "plan": plan}
OBJECTS = {"infer": {"source": InputSource, "decoding": Decoding}}


@pytest.mark.parametrize("path", SETTINGS)
def test_every_parameter_has_a_setting(path):
    module, _, name = path.rpartition(".")
    function = getattr(__import__(module, fromlist=[name]), name)
    given = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    # What a step or a metric gets from its caller is no setting.
    from_caller = {
        "student_logits", "teacher_logits", "targets", "predictions", "text", "prompts", "samples",
        "references",
    }  # fmt: skip
    from_caller -= set(SETTINGS[path])  # LoRA's `targets` are
    if module.startswith(("gkd.train", "gkd.evaluate", "gkd.sweep", "gkd.configuration")):
        from_caller = set()
    assert set(given) - from_caller == set(SETTINGS[path])


@pytest.mark.parametrize("path", SETTINGS)
def test_every_default_is_an_accepted_value(path):
    module, _, name = path.rpartition(".")
    function = getattr(__import__(module, fromlist=[name]), name)
    for parameter in inspect.signature(function).parameters.values():
        value = parameter.default
        if value is parameter.empty or parameter.name not in SETTINGS[path]:
            continue
        if dataclasses.is_dataclass(value):  # an object, whose own fields are checked
            continue
        if callable(value):
            value = FunctionValue(f"{value.__module__}.{value.__name__}", False, "")
        if isinstance(value, tuple) and value and callable(value[0]):
            value = [FunctionValue(f"{f.__module__}.{f.__name__}", False, "") for f in value]
        check(value, SETTINGS[path][parameter.name], parameter.name)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_a_plain_verb_has_a_setting(verb):
    parameters = dict(inspect.signature(VERB_FUNCTIONS[verb]).parameters)
    for name, kind in OBJECTS.get(verb, {}).items():
        del parameters[name]
        parameters |= inspect.signature(kind).parameters
    parameters.pop("experiment", None)
    assert set(parameters) == set(VERBS[verb])
    parsed = vars(_parser(verb).parse_args(REQUIRED[verb]))
    assert set(parsed) == set(VERBS[verb])
    for name, parameter in parameters.items():
        if parameter.default is not parameter.empty:
            assert parsed[name] == parameter.default, name


def _parser(verb):
    import argparse

    parser = argparse.ArgumentParser()
    ADD_ARGUMENTS[verb](parser)
    return parser

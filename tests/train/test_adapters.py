"""Runs that train adapters only: base, evaluations, resumes, teachers, and what is refused."""

import json

import jax
import numpy as np
import pytest

from gkd.checkpoints import formats, load_hf
from gkd.checkpoints.tensors import read_numpy, tensor_names
from gkd.cli import command_line
from gkd.data import pipeline
from gkd.evaluate.evaluation import host_batch
from gkd.parallel import mesh as meshes
from tests.compilation import devices
from tests.step_programs import program_of
from tests.teacher_prompts import OVERRIDES
from tests.train.training import fails, saved_steps, train, train_whole_and_in_parts

LORA = ("LORA=@lora.LoRA()", "STUDENT_MODEL=None", "LEARNING_RATE=0.1")
SHORT = ("EVALUATE_EVERY=0", "CHECKPOINT_EVERY=2", "TRAIN_STEPS=4")
OPSD = ("DIVERGENCE=@divergences.forward_kl", "LAMBDA=1.0", "TEACHER_WEIGHTS='initial'", *OVERRIDES)


@pytest.fixture
def one_device():
    with devices(1):
        yield


def names(tree):
    return {name: np.asarray(leaf) for name, leaf in tensor_names(jax.device_get(tree)).items()}


def first_batch(program):
    batches = program.experiment.batches
    rows = pipeline.training_batches(
        program.task, "train", batches.size, batches.input_length, batches.target_length, 0,
        own_rows=meshes.own_rows(program.mesh, batches.size),
    )  # fmt: skip
    return meshes.place_batch(host_batch(next(rows)), program.mesh)


def one_step(*overrides, devices=None):
    """(state before, state after, metrics) of a run's first step."""
    program = program_of(*overrides, devices=devices, read=True)
    state = program.state.make()
    before = names(state.params)
    given = program.frozen_teacher and program.frozen_teacher.params
    after, metrics = program.compile()(state, given, first_batch(program))
    return before, names(after.params), jax.device_get(metrics)


def test_adapters_leave_zero_at_the_learning_rate(teacher, one_device):
    """Adafactor's updates have a root mean square of 1 at most; at 0 they were divided by 1000."""
    settings = (*LORA[:2], "OPTIMIZER=@optimizers.adafactor", "LEARNING_RATE=0.01")
    before, after, _ = one_step(*settings, f"STUDENT='{teacher}'")
    moved = {name: np.sqrt(np.mean(value**2)) for name, value in after.items()
             if not before[name].any()}  # fmt: skip
    assert moved and all(0.003 < value < 0.0101 for value in moved.values()), moved


def test_a_run_of_adapters_continues_bit_for_bit_with_its_base_as_teacher(
    tmp_path, teacher, no_evaluations
):
    settings = (*OPSD, *LORA, f"STUDENT='{teacher}'")
    _, whole, parts = train_whole_and_in_parts(tmp_path, *settings)
    kept = [
        names(read_numpy(formats.open_checkpoint(run).adapter_tensors)) for run in (whole, parts)
    ]
    for name, value in kept[0].items():
        assert name.endswith(("/a", "/b")) and value.tobytes() == kept[1][name].tobytes()
    summary = json.loads((whole / "summary.json").read_text())
    trained = sum(value.size for value in kept[0].values())
    assert (summary["trained_parameters"], summary["parameters"]) == (trained, 8432)
    assert not (whole / "teacher.json").exists()  # its base is in the description of its adapters


def test_what_training_measures_is_what_is_opened_and_converted(tmp_path, teacher, one_device):
    run = tmp_path / "run"
    assert train(run, *LORA, f"STUDENT='{teacher}'", "TRAIN_STEPS=4", "EVALUATE_EVERY=0") == 0
    program = program_of(*LORA, f"STUDENT='{teacher}'", read=True)
    opened = formats.open_checkpoint(run)
    trained = tensor_names(read_numpy(opened.adapter_tensors))
    state = program.state.make()
    state = state.replace(params=jax.tree.unflatten(
        jax.tree.structure(state.params), [trained[name] for name in names(state.params)]
    ))  # fmt: skip
    measured, base = names(program.student_params(state)), names(program.student.params)
    moved = 0.0
    for name, value in tensor_names(read_numpy(opened.tensors)).items():
        np.testing.assert_allclose(measured[name], value, atol=1e-6)
        moved += float(np.abs(value - base[name]).max())
    assert moved > 0.1  # the adapters have learnt something
    assert command_line.main(["convert", str(run), str(tmp_path / "hf")]) == 0
    converted = load_hf(tmp_path / "hf")[1]
    for name, value in tensor_names(converted).items():
        np.testing.assert_allclose(measured[name], value, atol=1e-6)
    before = tensor_names(read_numpy(formats.open_checkpoint(teacher).tensors))
    for name, value in before.items():
        np.testing.assert_array_equal(base[name], value)  # the base is as it was


def test_a_teacher_at_the_start_costs_no_copy_and_an_average_that_of_the_adapters():
    held = {}
    for weights in ("initial", "current", "average"):
        program = program_of(*OPSD, *LORA[:1], f"TEACHER_WEIGHTS='{weights}'")
        average = program.state.abstract.average
        held[weights] = sum(leaf.size for leaf in jax.tree.leaves(average))
        assert program.frozen_teacher is None
        assert len(jax.tree.leaves(program.state.abstract.opt_state)) > len(
            jax.tree.leaves(program.state.abstract.params)
        )
    adapters = 6 * 8 * (16 + 16)  # of the queries and values of three attentions, with rank 8
    assert held == {"initial": 0, "current": 0, "average": adapters}


def test_the_base_teaches_as_its_checkpoint_does_and_stays_bit_for_bit(teacher, one_device):
    """For 20 steps, in which the student moves away from it."""
    settings = (*LORA, *OPSD, f"STUDENT='{teacher}'")
    losses = []
    for more in ((), ("TEACHER_WEIGHTS='checkpoint'", f"TEACHER='{teacher}'")):
        program = program_of(*settings, *more, read=True)
        before = names((program.student.params, program.frozen_teacher and program.teacher.params))
        state, step, batch = program.state.make(), program.compile(), first_batch(program)
        given = program.frozen_teacher and program.frozen_teacher.params
        found = []
        for _ in range(20):
            state, metrics = step(state, given, batch)
            found.append(float(metrics["loss"][0]))
        losses.append(found)
        after = names((program.student.params, program.frozen_teacher and program.teacher.params))
        for name, value in before.items():
            assert value.tobytes() == after[name].tobytes()
        whole, base = names(program.student_params(state)), names(program.student.params)
        assert max(np.abs(whole[name] - base[name]).max() for name in base) > 0.1
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        OPSD,
        ("REWARD=@reward_functions.exact_number", "ALPHA=0.0", "LAMBDA=1.0", "SAMPLES=2"),
        pytest.param(("MICROBATCHES=2",), marks=pytest.mark.slow),
        pytest.param((*OPSD, "TEACHER_WEIGHTS='average'"), marks=pytest.mark.slow),
    ],
    ids=["opsd", "reward on the host", "microbatches", "average"],
)
def test_eight_devices_train_the_adapters_that_one_trains(teacher, overrides):
    settings = (*LORA, f"STUDENT='{teacher}'", *overrides)
    before, one, metrics = one_step(*settings, devices=jax.devices()[:1])
    _, eight, again = one_step(*settings, "MODEL_PARALLELISM=2", devices=jax.devices())
    assert sum(np.abs(one[name] - before[name]).max() for name in one) > 1e-3
    for name, value in one.items():
        np.testing.assert_allclose(eight[name], value, atol=2e-4, err_msg=name)
    for name, pair in metrics.items():
        np.testing.assert_allclose(again[name], pair, rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("STUDENT=None", "STUDENT_MODEL=@t5.T5Config()"), "LORA is set, but STUDENT is not"),
        (("lora.LoRA.targets=['quary']",), "LORA's target 'quary' names no kernel of the model"),
        (("lora.LoRA.rank=17",), "LORA's rank is 17, but decoder/layers_0/encoder_decoder"),
        ((*OPSD, "TEACHER_DTYPE='bfloat16'"), "TEACHER_DTYPE is 'bfloat16', but the teacher is"),
    ],
)
def test_what_does_not_fit_is_one_line(capfd, tmp_path, teacher, overrides, message):
    settings = (*LORA, f"STUDENT='{teacher}'", *overrides)
    assert message in fails(capfd, tmp_path / "run", *settings)


def test_another_base_or_no_adapters_do_not_continue_a_run(
    tmp_path, teacher, capfd, no_evaluations, one_device
):
    run, base = tmp_path / "run", tmp_path / "base"
    assert train(base, "TRAIN_STEPS=2", "CHECKPOINT_EVERY=2") == 0
    settings = (*LORA, f"STUDENT='{base}'", *SHORT)
    assert train(run, *settings, "TRAIN_STEPS=2") == 0
    assert "holds adapters itself" in fails(
        capfd, tmp_path / "second", *LORA, f"STUDENT='{run}'", *SHORT
    )
    whole = ("LORA=None", "ALLOW_CHANGES=True")
    assert "does not fit this run" in fails(capfd, run, *settings, *whole)
    other = ("lora.LoRA.alpha=1", "ALLOW_CHANGES=True")  # would scale what was learnt
    assert (
        "'alpha': 1, " in (line := fails(capfd, run, *settings, *other)) and "'alpha': 16" in line
    )
    only_newest = ("TRAIN_STEPS=4", "CHECKPOINT_EVERY=1", "experiment.Schedule.keep_last=1")
    assert train(base, *only_newest) == 0  # its step 2 is kept, for the adapters
    assert sorted(saved_steps(base)) == [2, 4]
    (base / "checkpoints" / "2").rename(tmp_path / "away")
    (base / "checkpoints" / "4").rename(base / "checkpoints" / "2")
    assert "other weights than the base" in fails(capfd, run, *settings)

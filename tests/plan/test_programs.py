"""The closed form of `plan` against counts of the traced step and of compiled programs."""

import dataclasses

import jax
import pytest

from gkd.distill import train_step
from gkd.evaluate.reward_scoring import load_reward_model
from gkd.metrics import reward_functions
from gkd.models.t5x_adapter import T5XModel
from gkd.parallel.model_sharding import UNSHARDED
from gkd.plan import programs
from gkd.plan.batch_lengths import of_shape
from gkd.plan.program_report import facts
from gkd.program_cost import roofline
from gkd.program_cost.collectives import Collective
from gkd.program_cost.program_cost import Part, ProgramCost, ProgramMemory, program_cost
from gkd.program_cost.topologies import topology_devices
from gkd.train.model_flops import UPDATE, step_flops, useful_flops
from tests.plan.counting import LAYERS, STACKED, counted_step
from tests.plan.planning import DISTIL, traced
from tests.products import products
from tests.teacher_prompts import LENGTH, OVERRIDES


@pytest.mark.parametrize(
    ("overrides", "length"),
    [
        ((), None),
        ((*DISTIL, "LAMBDA=0.0"), None),
        ((*DISTIL, "LAMBDA=1.0"), 12),
        ((*DISTIL, "LAMBDA=0.5"), 12),
        ((*DISTIL, "LAMBDA=1.0", "SAMPLES=3"), 12),
        ((*DISTIL, "LAMBDA=1.0", "ROLLOUT_LENGTH=5"), 5),
        ((*DISTIL, "LAMBDA=1.0", "MICROBATCHES=2"), 12),
        ((*DISTIL, "LAMBDA=1.0", "DROPOUT_RATE=0.1"), 12),
        ((*DISTIL, "LAMBDA=1.0", "REMAT=True"), 12),
        ((*DISTIL, "LAMBDA=1.0", *OVERRIDES), 12),
        ((*DISTIL, "REPLAY=@replay.Replay()"), 12),
        (("REMAT=True", "STUDENT_STACKED=True"), None),
        ((*DISTIL, "LAMBDA=1.0", "INPUT_LENGTH=512", "SAMPLES=64"), 12),
        ((*DISTIL, "LAMBDA=0.0", "TARGET_LENGTH=512", "REMAT=True"), None),
    ],
)
def test_the_closed_form_is_what_the_traced_step_multiplies(overrides, length):
    program = traced(*overrides)
    arguments = program.state.abstract, program.teacher and program.teacher.shapes, program.batch
    counted = 2 * products(program.step.step, *arguments, loop_trips=length)
    costs = step_flops(program, length or 12, split=False)
    assert sum(costs.values()) * program.mesh.size == pytest.approx(counted, rel=0.01)
    assert (costs[train_step.Part.SAMPLING] > 0) == (length is not None)


def test_samples_are_no_longer_than_the_targets_of_a_shorter_batch():
    program = traced(*DISTIL, "LAMBDA=1.0", "ROLLOUT_LENGTH=10")
    program = of_shape(program, {"inputs": 24, "targets": 6})
    arguments = program.state.abstract, program.teacher.shapes, program.batch
    counted = 2 * products(program.step.step, *arguments, loop_trips=6)
    assert sum(step_flops(program, 6).values()) == pytest.approx(counted / 8, rel=0.01)
    (planned,) = programs.step_programs(program).values()
    assert planned.bound == 6


def test_sampling_that_ends_early_costs_less():
    program = traced(*DISTIL, "LAMBDA=1.0")
    all_of_it, third = (step_flops(program, length) for length in (12, 4))
    loops = [
        costs[train_step.Part.SAMPLING] - step_flops(program, 0)[train_step.Part.SAMPLING]
        for costs in (all_of_it, third)
    ]
    assert loops[1] == pytest.approx(loops[0] / 3)
    arguments = program.state.abstract, program.teacher.shapes, program.batch
    counted = 2 * products(program.step.step, *arguments, loop_trips=4)
    assert sum(third.values()) == pytest.approx(counted / 8, rel=0.01)
    assert third[UPDATE] == all_of_it[UPDATE]


@pytest.mark.parametrize(
    ("model", "rows", "prompts"),
    [
        pytest.param(1, 24, (), marks=pytest.mark.slow, id="data"),
        pytest.param(4, 24, OVERRIDES, id="rows over both, the teacher's own prompts"),
        pytest.param(4, 24, (), marks=pytest.mark.slow, id="rows over both"),
        pytest.param(4, 12, (), marks=pytest.mark.slow, id="rows do not"),
    ],
)
def test_evaluation_and_generation_cost_their_closed_form(model, rows, prompts):
    axes = f"EVALUATION_BATCH_SIZE={rows}", f"MODEL_PARALLELISM={model}"
    program = traced(*DISTIL, "LAMBDA=1.0", *axes, *prompts)
    planned = {
        **programs.evaluation_programs(program),
        **programs.generation_programs(program),
    }
    assert list(planned) == [
        "evaluation: student", "evaluation: teacher", "evaluation: divergences",
        "generation: student", "generation: teacher",
    ]  # fmt: skip
    for name in ("evaluation: teacher", "evaluation: divergences", "generation: student"):
        text = planned[name].lower().compile().as_text()
        for length in (12, 3):
            counted = program_cost(text, expected_share=length / 12).flops
            assert counted == pytest.approx(planned[name].flops(length), rel=0.03), name
    assert "optimizer" in planned["evaluation: student"].held
    assert list(planned["generation: student"].held) == ["parameters"]


def test_a_teachers_own_prompt_counts_in_step_and_evaluation():
    """Its length is not a multiple of the student's, so that a wrong one shows.

    What a compiled evaluation counts with such prompts is compared above.
    """
    plain, other = (traced(*DISTIL, *more) for more in ((), OVERRIDES))
    assert other.batch.teacher_encoder_input_tokens.shape == (16, LENGTH)
    costs = [step_flops(program, 12) for program in (plain, other)]
    assert costs[0][UPDATE] == costs[1][UPDATE]
    assert costs[0][train_step.Part.TEACHER] < costs[1][train_step.Part.TEACHER]
    planned = [programs.evaluation_programs(program) for program in (plain, other)]
    for name in ("evaluation: teacher", "evaluation: divergences"):
        assert planned[0][name].flops(12) < 0.95 * planned[1][name].flops(12)
    cache = [one["evaluation: teacher"].cache for one in planned]
    assert cache[1] / cache[0] == (LENGTH + 12) / (24 + 12)


def test_a_run_without_a_teacher_measures_no_divergence():
    program = traced()
    assert list(programs.evaluation_programs(program)) == ["evaluation: student"]
    assert list(programs.generation_programs(program)) == ["generation: student"]


def test_models_whose_tables_differ_generate_the_ids_of_their_own():
    big = "TEACHER_MODEL=@big/t5.T5Config()", "big/t5.T5Config.vocab_size=80"
    program = traced(*DISTIL, *big)
    planned = programs.generation_programs(program)
    for name, size in (("student", 64), ("teacher", 80)):
        assert f"tensor<{size}xi1>" in planned[f"generation: {name}"].lower().as_text()


def test_a_t5x_module_generates_in_the_dtype_of_its_own_gin():
    class InPlaceOfT5X(T5XModel):
        def build(self, sharding=UNSHARDED):
            return self.config.build(sharding)

    program = traced()
    own = InPlaceOfT5X(None, program.student.config)
    student = dataclasses.replace(program.student, config=own)
    planned = programs.generation_programs(dataclasses.replace(program, student=student))
    held = sum(leaf.size * 4 for leaf in jax.tree.leaves(program.student.shapes))
    assert planned["generation: student"].held["parameters"] == held
    model = reward_functions.entailment(prompt_prefix="", input_length=8)
    mesh, rules, task = program.mesh, program.rules, program.task
    reward = load_reward_model(model, None, own, mesh, rules, task, with_params=False)
    assert reward.config == own


SCHEDULE = (
    "LAMBDA=@mixing.linear_schedule()", "mixing.linear_schedule.start=0.0",
    "mixing.linear_schedule.end=1.0", "mixing.linear_schedule.steps=20",
)  # fmt: skip
REWARDED = (
    "REWARD=@reward_functions.rouge", "reward_functions.rouge.name='rouge1'", "LAMBDA=1.0",
)  # fmt: skip
INNER_LAYER = (
    "AUXILIARY_LOSS=@inner_layer.InnerLayerLoss()", "inner_layer.InnerLayerLoss.layer=1",
    "t5.T5Config.num_decoder_layers=2",
)  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        (*DISTIL, "ALPHA=0.5"),
        ("ALPHA=0.0", "SAMPLES=2", "POLICY_LOSS='grpo'", "UPDATES_PER_ROLLOUT=2"),
    ],
)
def test_halves_of_a_step_cost_their_closed_form(settings):
    """Counting the loop of several updates never ended: it followed every chain of its values."""
    program = traced(*REWARDED, *settings, devices=jax.devices()[:1])
    planned = programs.step_programs(program)
    assert list(planned) == ["step: rollout", "step: update"]
    for one in planned.values():
        counted = program_cost(one.lower().compile().as_text()).flops
        assert counted == pytest.approx(one.flops(12), rel=0.03)


@pytest.mark.parametrize(
    "settings",
    [
        (*DISTIL, "ALPHA=0.5", "POLICY_LOSS='grpo'", "UPDATES_PER_ROLLOUT=3"),
        ("ALPHA=0.0", "SAMPLES=2", "POLICY_LOSS='grpo'", "UPDATES_PER_ROLLOUT=2"),
        (*INNER_LAYER, "ALPHA=0.0"),
        (*INNER_LAYER, *DISTIL, "ALPHA=0.5", "inner_layer.InnerLayerLoss.weight=0.0"),
        (
            "DIVERGENCE=@divergences.forward_kl",
            "TEACHER_WEIGHTS='initial'",
            "ALPHA=0.0",
            "SAMPLES=3",
            "AUXILIARY_LOSS=@witness.WitnessLoss()",
            "witness.WitnessLoss.tokens=5",
        ),
    ],
)
def test_an_update_on_rewards_costs_its_closed_form(settings):
    program = traced(*REWARDED, *settings, devices=jax.devices()[:1])
    counted = 2 * products(
        program.step.update, program.state.abstract, program.teacher and program.teacher.shapes,
        program.batch, program._abstract_rollout(),
    )  # fmt: skip
    costs = step_flops(program, 12)
    parts = (train_step.Part.TEACHER, UPDATE)
    assert sum(costs[part] for part in parts) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("mixed", "share"),
    [
        (("LAMBDA=0.25",), 0.25),
        (("LAMBDA=0.25", "MIXING='example'"), 0.25),
        (SCHEDULE, (sum(step / 20 for step in range(20)) + 20) / 40),
    ],
)
def test_sampling_is_weighted_by_the_mean_of_lambda(mixed, share):
    """Forty steps, of which the schedule rises over twenty."""
    counted = []
    for fraction, trips in ((0.0, None), (1.0, 12)):
        pure = traced(*DISTIL, f"LAMBDA={fraction}")
        arguments = pure.state.abstract, pure.teacher.shapes, pure.batch
        counted.append(2 * products(pure.step.step, *arguments, loop_trips=trips) / 8)
    program = traced(*DISTIL, *mixed)
    (planned,) = programs.step_programs(program).values()
    wanted = (1 - share) * counted[0] + share * counted[1]
    assert planned.useful(12) == pytest.approx(wanted, rel=0.02)
    chip = roofline.CHIPS["cpu"]
    sources = {"jit(step)/gkd_sampling/dot": 3e11, "jit(step)/dot": 1e11}
    parts = [Part("dot", name, "", 1.0, x, x, 0.0, 0.0) for name, x in sources.items()]
    cost = ProgramCost(tuple(parts), (), ())
    measured = programs.Measured(
        ProgramMemory(0, 0, 0, 0, 0), None, cost, {"gkd_sampling": 3.0, "update": 1.0}, 0.0
    )
    planned = dataclasses.replace(planned, flops=lambda length: 4e11)
    found = facts(program, planned, measured, chip, 12, {"price": None, "chips": 8})
    sampled = 1.0 if "MIXING='example'" in mixed else share
    assert found["seconds"] == pytest.approx(3 * sampled + 1)
    assert found["seconds_without_overlap"] == pytest.approx(3 * sampled + 1)
    assert found["run"]["roofline_lower_bound"]["mfu"] == pytest.approx(
        found["useful_flops"] / (3 * sampled + 1) / 1e11
    )


def test_copies_and_collectives_of_a_loop_belong_to_the_loops_part():
    """A TPU's copies and collectives between slices have no source; the loop around them has."""
    around = ("jit(step)/jvp(gkd_sampling)/while", "jit(step)/gkd_teacher/while", "")
    copies = [Part("copy-start", "copy.1", loop, 1.0, 0.0, 0.0, 0.0, 8.0) for loop in around]
    sent = [Collective("all-reduce", 1.0, 4.0, 4.0, 2, True, "send.1", loop) for loop in around]
    found = programs.parts(ProgramCost(tuple(copies), tuple(sent), ()))
    for name, copy, one in zip(
        ("gkd_sampling", "gkd_teacher", "update"), copies, sent, strict=True
    ):
        assert (found[name].parts, found[name].collectives) == ((copy,), (one,))
    assert found["gkd_reward"].parts == ()


def check_loops_count_as_unrolled(devices, *overrides):
    looped, closed_form = counted_step(*STACKED, *overrides, devices=devices)
    unrolled, _ = counted_step(*overrides, devices=devices)
    layers = [loop for loop in looped.loops if loop.bound == 4]
    assert len(layers) >= 6  # the student's two stacks forward and backward, the teacher's two
    assert not any(loop.bound == 4 for loop in unrolled.loops)
    assert looped.flops == pytest.approx(unrolled.flops, rel=0.03)
    assert looped.flops == pytest.approx(closed_form, rel=0.03)


@pytest.mark.slow
def test_a_step_of_stacked_layers_counts_as_the_unrolled_one(optimized):
    check_loops_count_as_unrolled(None, "MODEL_PARALLELISM=2")


@pytest.mark.slow
def test_chips_have_the_same_work_on_a_larger_slice(optimized):
    """Rows of a chip are the same on 2 and on 8."""
    two, _ = counted_step("BATCH_SIZE=4", devices=jax.devices()[:2])
    eight, _ = counted_step("BATCH_SIZE=16")
    assert eight.flops == pytest.approx(two.flops, rel=0.05)


@pytest.mark.parametrize(
    "overrides",
    [
        ("MICROBATCHES=2", "BATCH_SIZE=40"),
        *(
            pytest.param(more, marks=pytest.mark.slow)
            for more in ((), ("REMAT=True",), ("t5.T5Config.mlp_dim=98",))
        ),
    ],
)
def test_chips_that_repeat_attention_share_out_its_fully_sharded_gradients(overrides):
    """Three heads on four chips along the model axis, kernels split over two along the other."""
    sizes = ("t5.T5Config.num_heads=3", "t5.T5Config.emb_dim=48", "t5.T5Config.mlp_dim=96")
    mesh = ("MODEL_PARALLELISM=4", "FULLY_SHARDED=True", "BATCH_SIZE=12")
    program = traced(*sizes, *mesh, *overrides)
    (planned,) = programs.step_programs(program).values()
    cost = program_cost(planned.lower().compile().as_text())
    assert cost.flops == pytest.approx(planned.flops(12), rel=0.01)


def compiled_for(topology):
    """For chips that are not here."""
    pytest.importorskip("libtpu", reason="compiling for a TPU needs libtpu")
    return topology_devices(topology)


@pytest.fixture
def tpus(optimized):
    return compiled_for("v5e:2x2")


WIDE = (
    "t5.T5Config.emb_dim=256", "t5.T5Config.num_heads=4", "t5.T5Config.head_dim=64",
    "t5.T5Config.mlp_dim=512", "INPUT_LENGTH=128",
)  # fmt: skip


@pytest.mark.slow
def test_a_step_of_stacked_layers_counts_as_the_unrolled_one_on_a_tpu(tpus):
    check_loops_count_as_unrolled(tpus, *WIDE)
    check_loops_count_as_unrolled(tpus, *WIDE, "MODEL_PARALLELISM=2", "MICROBATCHES=2")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_chip_of_two_slices_has_the_work_of_one_and_sends_its_share_of_the_gradients(
    tpus, dtype, size
):
    run = (*WIDE, f"STUDENT_DTYPE={dtype!r}")
    one, _ = counted_step(*run, "BATCH_SIZE=16", devices=tpus)
    both = compiled_for("2*v5e:2x2")
    two, closed_form = counted_step(*run, "BATCH_SIZE=32", devices=both)
    assert two.flops == pytest.approx(one.flops, rel=0.01) == pytest.approx(closed_form, rel=0.01)
    assert one.dcn_bytes == 0
    # Each chip has added up a quarter of its slice's gradients, and takes that to the other slice.
    params = traced(*WIDE, *LAYERS, devices=both).state.abstract.params
    gradients = size * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert gradients / 4 <= two.dcn_bytes < 1.2 * gradients / 4


@pytest.mark.slow
def test_a_tpu_that_is_too_small_gets_a_verdict(tpus):
    program = traced(*DISTIL, "BATCH_SIZE=65536", "INPUT_LENGTH=1024", devices=tpus)
    (planned,) = programs.step_programs(program).values()
    found = programs.measure(planned.lower, roofline.CHIPS["v5e"], 1.0)
    assert found.memory is None and found.needed > roofline.CHIPS["v5e"].memory


def test_what_is_rematerialised_is_no_use():
    again, once = (traced("REMAT=True"), traced())
    assert sum(step_flops(again, 12).values()) > 1.2 * sum(step_flops(once, 12).values())
    assert useful_flops(again, 0) == useful_flops(once, 0)


def test_a_step_that_sampled_nothing_has_the_work_of_one_that_never_does():
    mixed, never = traced(*DISTIL, "LAMBDA=0.5"), traced(*DISTIL, "LAMBDA=0.0")
    arguments = never.state.abstract, never.teacher.shapes, never.batch
    counted = 2 * products(never.step.step, *arguments)
    assert useful_flops(mixed, 0) == pytest.approx(counted / 8, rel=0.01)
    assert useful_flops(mixed, 12) > 1.1 * counted / 8

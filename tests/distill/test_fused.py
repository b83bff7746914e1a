"""The fused loss against float64 NumPy: values, gradients, memory, products, and eight devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from gkd.distill import divergences
from gkd.distill.fused import _balanced_size, automatic_block_size, fused_token_loss
from gkd.distill.logits import DenseLogits, ProjectedLogits, token_log_prob
from gkd.models.interface import Head
from tests.distill import references
from tests.products import products

N, V, E, TEACHER_E, SCALE = 8, 40, 12, 16, 12**-0.5


def token_loss(name, student_logits, teacher_logits, targets):
    return divergences.reported_divergences()[name](student_logits, teacher_logits)


class Case:
    """Random hidden states, heads and coefficients, and what float64 NumPy makes of them."""

    def __init__(self, length, name="jsd_0.1", transposed=False):
        self.name, self.transposed = name, transposed
        self.hidden = references.normal(0, N, length, E, scale=1)
        self.kernel = references.normal(1, E, V)
        teacher_hidden = references.normal(2, N, length, TEACHER_E, scale=1)
        teacher_kernel = references.normal(3, TEACHER_E, V, scale=0.7)
        self.teacher = ProjectedLogits(jnp.array(teacher_hidden), Head(jnp.array(teacher_kernel)))
        random = np.random.default_rng(4)
        kept = random.uniform(size=(N, length)) > 0.3
        self.coefficients = np.float32(kept * random.uniform(size=(N, length)))
        self.student_logits = SCALE * np.float64(self.hidden) @ np.float64(self.kernel)
        self.teacher_logits = np.float64(teacher_hidden) @ np.float64(teacher_kernel)

    def student(self, hidden, kernel):
        return ProjectedLogits(hidden, Head(kernel, SCALE, self.transposed))

    def arguments(self, dtype=jnp.float32):
        kernel = self.kernel.T if self.transposed else self.kernel
        return jnp.array(self.hidden, dtype), jnp.array(kernel, dtype)

    def loss(self, student, teacher, **options):
        targets = jnp.zeros(self.coefficients.shape, jnp.int32)
        loss = functools.partial(token_loss, self.name)
        coefficients = jnp.array(self.coefficients)
        return fused_token_loss(loss, student, teacher, targets, coefficients, **options)

    def value_and_gradient(self, dtype=jnp.float32, **options):
        """The fused loss and its gradients for hidden states and kernel, jitted."""

        def loss(hidden, kernel):
            return self.loss(self.student(hidden, kernel), self.teacher, **options)[0]

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(*self.arguments(dtype))

    def expected(self):
        """Value, gradient for the logits, the hidden states and the kernel, in float64."""
        logits = self.student_logits, self.teacher_logits
        losses = references.divergence(self.name, *logits)
        gradient = references.divergence_gradient(self.name, *logits)
        gradient = gradient * self.coefficients[..., None]
        hidden = SCALE * gradient @ np.float64(self.kernel).T
        kernel = SCALE * np.einsum("nte,ntv->ev", np.float64(self.hidden), gradient)
        kernel = kernel.T if self.transposed else kernel
        return (losses * self.coefficients).sum(), gradient, hidden, kernel


def assert_equal_to_float64(case, value, gradients, tolerance=2e-6):
    expected, _, *expected_gradients = case.expected()
    assert float(value) == pytest.approx(expected, rel=tolerance)
    for actual, reference in zip(gradients, expected_gradients, strict=True):
        scale = np.abs(reference).max()
        actual = np.asarray(actual, np.float64)
        np.testing.assert_allclose(actual / scale, reference / scale, atol=tolerance)


@pytest.mark.parametrize("name", divergences.reported_divergences())
def test_every_divergence_equals_float64(name):
    case = Case(9, name)
    assert_equal_to_float64(case, *case.value_and_gradient(block_size=4))


@pytest.mark.parametrize(
    "length, block_size, transposed",
    [
        (9, 1, False), (9, 2, True), (8, 4, False), (11, 5, True), (9, None, True), (3, 7, False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (9, 1, True), (9, 2, False), (8, 4, True),
                (11, 5, False), (9, None, False), (3, 7, True),
            )
        ),
    ],
)  # fmt: skip
def test_lengths_blocks_and_orientations(length, block_size, transposed):
    case = Case(length, transposed=transposed)
    assert_equal_to_float64(case, *case.value_and_gradient(block_size=block_size))


@pytest.mark.parametrize(
    "student_is_dense, teacher_is_dense",
    [(False, True), (True, False), pytest.param(True, True, marks=pytest.mark.slow)],
)
def test_every_pairing_of_forms(student_is_dense, teacher_is_dense):
    case = Case(7)
    teacher = case.teacher
    if teacher_is_dense:
        teacher = DenseLogits(jnp.array(case.teacher_logits, jnp.float32))
    student = case.student(*case.arguments())
    if student_is_dense:
        student = DenseLogits(jnp.array(case.student_logits, jnp.float32))
    loss = jax.jit(lambda x: case.loss(x, teacher, block_size=3)[0])
    value, gradient = jax.value_and_grad(loss)(student)
    expected, logits_gradient, _, kernel_gradient = case.expected()
    assert float(value) == pytest.approx(expected, rel=2e-6)
    if student_is_dense:
        np.testing.assert_allclose(gradient.values, logits_gradient, atol=1e-6)
    else:
        np.testing.assert_allclose(gradient.head.kernel, kernel_gradient, atol=5e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_bfloat16_stays_near_float64_and_gradients_keep_its_type(transposed):
    case = Case(9, "forward_kl", transposed)
    value, gradients = case.value_and_gradient(jnp.bfloat16, block_size=4)
    assert value.dtype == jnp.float32 and {x.dtype for x in gradients} == {jnp.dtype("bfloat16")}
    assert_equal_to_float64(case, value, gradients, tolerance=2e-2)


def test_per_token_losses_and_metrics_are_in_place_and_carry_no_gradient():
    case = Case(11)

    def run(hidden):
        _, losses, metrics = case.loss(
            case.student(hidden, case.arguments()[1]),
            case.teacher,
            block_size=4,
            token_metrics=lambda student, teacher, targets: {
                "student": student[..., 3],
                "teacher": teacher[..., 5],
            },
        )
        return losses, metrics

    def total(hidden):
        return sum(leaf.sum() for leaf in jax.tree.leaves(run(hidden)))

    @jax.jit
    def run_and_slope(hidden):
        return run(hidden), jax.grad(total)(hidden)

    (losses, metrics), slope = run_and_slope(case.arguments()[0])
    kept = case.coefficients != 0
    expected = references.divergence(case.name, case.student_logits, case.teacher_logits)
    np.testing.assert_allclose(losses * kept, expected * kept, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        metrics["student"] * kept, case.student_logits[..., 3] * kept, atol=1e-5
    )
    np.testing.assert_allclose(
        metrics["teacher"] * kept, case.teacher_logits[..., 5] * kept, atol=1e-5
    )
    np.testing.assert_array_equal(slope, 0.0)


def test_targets_reach_their_own_block():
    logits = references.normal(6, 2, 7, 5)
    targets = np.arange(14).reshape(2, 7) % 5

    def cross_entropy(student, teacher, targets):
        assert teacher is None
        return -token_log_prob(student, targets)

    total, losses, _ = fused_token_loss(
        cross_entropy, DenseLogits(jnp.array(logits)), None, jnp.array(targets, jnp.int32),
        jnp.ones((2, 7)), block_size=3,
    )  # fmt: skip
    p = np.take_along_axis(references.probabilities(logits), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(losses, -np.log(p), rtol=1e-5)
    assert float(total) == pytest.approx(-np.log(p).sum(), rel=1e-6)


@pytest.mark.parametrize("length", [pytest.param(8, marks=pytest.mark.slow), 9])
def test_masked_nan_and_inf_change_nothing(length):
    case = Case(length)
    plain = case.value_and_gradient(block_size=4)
    masked = case.coefficients == 0
    assert masked.sum() > 5
    case.hidden[masked] = np.nan
    case.hidden[masked & (np.arange(length) % 2 == 0)] = np.inf
    teacher_hidden = np.array(case.teacher.hidden)
    teacher_hidden[masked] = np.nan
    case.teacher = case.teacher.replace(hidden=jnp.array(teacher_hidden))
    value, (hidden, kernel) = case.value_and_gradient(block_size=4)
    assert float(value) == float(plain[0])
    np.testing.assert_array_equal(np.asarray(hidden)[masked], 0.0)
    np.testing.assert_allclose(hidden, plain[1][0], atol=1e-7)
    np.testing.assert_allclose(kernel, plain[1][1], atol=1e-7)


def test_a_nan_that_counts_is_not_hidden():
    case = Case(8)
    n, t = np.argwhere(case.coefficients != 0)[0]
    case.hidden[n, t, 0] = np.nan
    assert np.isnan(case.value_and_gradient(block_size=4)[0])


def test_nothing_flows_to_the_teacher_and_the_losses_flow_to_the_coefficients():
    case = Case(7)
    student = case.student(*case.arguments())
    to_teacher = jax.jit(jax.grad(lambda teacher: case.loss(student, teacher, block_size=3)[0]))(
        case.teacher
    )
    for leaf in jax.tree.leaves(to_teacher):
        np.testing.assert_array_equal(leaf, 0.0)
    case.coefficients = np.ones_like(case.coefficients)
    targets = jnp.zeros(case.coefficients.shape, jnp.int32)
    loss = functools.partial(token_loss, case.name)
    slope = jax.jit(
        jax.grad(lambda c: fused_token_loss(loss, student, case.teacher, targets, c)[0])
    )(jnp.array(case.coefficients))
    expected = references.divergence(case.name, case.student_logits, case.teacher_logits)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


def test_the_cotangent_scales_the_gradient():
    case = Case(8)

    def scaled(factor, hidden):
        kernel = case.arguments()[1]
        return factor * case.loss(case.student(hidden, kernel), case.teacher, block_size=4)[0]

    hidden = case.arguments()[0]
    slope = jax.jit(jax.grad(scaled, argnums=1))
    once, thrice = (slope(factor, hidden) for factor in (1.0, 3.0))
    np.testing.assert_allclose(thrice, 3 * once, rtol=1e-6)


def big(length, vocabulary=2048, embed=32, rows=8, size=16):
    """Shapes of a larger problem, and its loss with a block of `size` positions."""
    shapes = (rows, length, embed), (embed, vocabulary), (rows, length, 48), (48, vocabulary)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]

    def loss(hidden, kernel, teacher_hidden, teacher_kernel, block_size=size):
        student = ProjectedLogits(hidden, Head(kernel))
        teacher = ProjectedLogits(teacher_hidden, Head(teacher_kernel))
        coefficients = jnp.ones((rows, length))
        return fused_token_loss(
            functools.partial(token_loss, "jsd_0.5"), student, teacher,
            coefficients.astype(jnp.int32), coefficients, block_size=block_size,
        )[0]  # fmt: skip

    return loss, arguments


def dense_loss(hidden, kernel, teacher_hidden, teacher_kernel):
    return divergences.generalized_jsd(
        hidden @ kernel, teacher_hidden @ teacher_kernel, beta=0.5
    ).sum()


def temporary_bytes(loss, arguments):
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_is_an_eighth_of_the_dense_loss_and_flat_in_length():
    loss, arguments = big(512)
    fused, dense = temporary_bytes(loss, arguments), temporary_bytes(dense_loss, arguments)
    assert fused <= dense / 8
    longer_loss, longer_arguments = big(1024)
    longer = temporary_bytes(longer_loss, longer_arguments)
    # Per token there remain a loss and the gradient of its hidden state, both copied once.
    assert longer - fused <= 4 * (8 * 512 * (32 + 2) * 4)
    logits_bytes = 8 * 512 * 2048 * 4
    assert longer - fused < logits_bytes / 10


@pytest.mark.parametrize("vocabulary", [pytest.param(32128, marks=pytest.mark.slow), 250112])
def test_t5_and_mt5_take_the_same_block_memory(vocabulary):
    """4096 tokens: beside the kernel's gradient (twice) a handful of blocks of 16 MB."""
    loss, arguments = big(512, vocabulary, 64, size=None)
    kernel_bytes, block_bytes = 4 * 64 * vocabulary, 16 * 2**20
    fused = temporary_bytes(loss, arguments)
    assert fused <= 2 * kernel_bytes + 6 * block_bytes
    assert fused <= 4 * 4096 * vocabulary / 5  # one tensor of logits has five times as much
    longer_loss, longer_arguments = big(1024, vocabulary, 64, size=None)
    longer = temporary_bytes(longer_loss, longer_arguments)
    assert longer - fused <= 4 * (8 * 512 * (64 + 2) * 4)


def test_products_are_those_of_the_dense_loss():
    loss, arguments = big(250)
    fused, dense = (products(jax.grad(x, (0, 1)), *arguments) for x in (loss, dense_loss))
    assert dense <= fused <= 1.05 * dense
    # Without differentiation there are only the two heads.
    values_only = products(loss, *arguments)
    assert values_only <= 1.05 * 8 * 250 * 2048 * (32 + 48)


def test_block_sizes_waste_few_positions():
    for length in range(74, 600):
        for largest in (8, 13, 32):
            size = _balanced_size(length, largest)
            assert largest / 2 < size <= largest
            assert -length % size <= 0.05 * length
    assert _balanced_size(5, 100) == 5


def test_the_automatic_block_stays_near_sixteen_megabytes():
    assert automatic_block_size(8, 512, 32128) == 16
    assert automatic_block_size(8, 512, 250112) == 2
    assert automatic_block_size(512, 64, 250112) == 1
    assert automatic_block_size(8, 12, 384) == 12


@pytest.mark.parametrize(
    "shape, transposed",
    [
        ((8, 1), True),
        ((4, 2), False),
        pytest.param((8, 1), False, marks=pytest.mark.slow),
        pytest.param((4, 2), True, marks=pytest.mark.slow),
    ],
)
def test_eight_devices_give_the_same_and_add_kernel_gradients_once(shape, transposed):
    case = Case(8, transposed=transposed)
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "model"))
    kernel_spec = Spec("model", None) if transposed else Spec(None, "model")

    def loss(hidden, kernel):
        student = case.student(hidden, kernel)
        return case.loss(student, case.teacher, block_size=4, data_shards=shape[0])[0]

    shardings = tuple(NamedSharding(mesh, spec) for spec in (Spec("data"), kernel_spec))
    step = jax.jit(jax.value_and_grad(loss, (0, 1)), in_shardings=shardings)
    compiled = step.lower(*case.arguments()).compile()
    assert_equal_to_float64(case, *compiled(*map(jax.device_put, case.arguments(), shardings)))
    kernel_size = np.prod(case.kernel.shape) // shape[1]
    entry = compiled.as_text().partition("\nENTRY ")
    in_loops = [
        np.prod([int(n) for n in dimensions.split(",")])
        for line in entry[0].splitlines()
        if " all-reduce(" in line or " all-gather(" in line
        for dimensions in re.findall(r"f32\[([\d,]+)\]", line.partition("= ")[2].partition("(")[0])
    ]
    assert all(size < kernel_size for size in in_loops)
    assert "all-gather" not in entry[0]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"teacher_vocabulary": V + 1}, "teacher vocabulary has 41 ids, student 40"),
        ({"teacher_length": 6}, r"student logits have shape \(8, 7, 40\), teacher logits \(8, 6"),
        ({"coefficient_length": 6}, r"student logits score \(8, 7\) tokens, the rollout has"),
        ({"data_shards": 3}, "8 rows do not divide over 3 devices"),
    ],
)
def test_mistakes_are_one_line_that_names_them(change, message):
    teacher = jnp.zeros((N, change.get("teacher_length", 7), change.get("teacher_vocabulary", V)))
    coefficients = jnp.ones((N, change.get("coefficient_length", 7)))
    with pytest.raises(ValueError, match=message) as error:
        fused_token_loss(
            functools.partial(token_loss, "forward_kl"),
            DenseLogits(jnp.zeros((N, 7, V))),
            DenseLogits(teacher),
            coefficients.astype(jnp.int32),
            coefficients,
            data_shards=change.get("data_shards", 1),
        )
    assert "\n" not in str(error.value)

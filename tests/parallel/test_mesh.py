"""Where arrays are placed: by hand-made expectations, and by what the arrays then say."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from gkd.distill import optimizers
from gkd.models import t5
from gkd.parallel import mesh as meshes


def model_of(**sizes):
    sizes = {"vocab_size": 64, "emb_dim": 16, "num_heads": 4, "head_dim": 8, "mlp_dim": 32, **sizes}
    config = t5.T5Config(num_encoder_layers=1, num_decoder_layers=1, **sizes)
    return jax.eval_shape(t5.as_seq2seq(config).init, jax.random.key(0))


def specs(boxed, mesh, **options):
    shardings = meshes.parameter_shardings(mesh, boxed, meshes.rules_for(**options))
    return jax.tree.map(lambda sharding: sharding.spec, shardings)


def test_a_mesh_takes_all_devices():
    assert dict(meshes.make_mesh().shape) == {"data": 8, "model": 1}
    assert dict(meshes.make_mesh(model=2).shape) == {"data": 4, "model": 2}
    assert dict(meshes.make_mesh(devices=jax.devices()[:2]).shape) == {"data": 2, "model": 1}
    with pytest.raises(ValueError, match="data=3 × model=2 needs 6 devices, 8 are here"):
        meshes.make_mesh(data=3, model=2)
    with pytest.raises(ValueError, match="8 are here"):
        meshes.make_mesh(model=3)


@dataclasses.dataclass(frozen=True)
class Chip:
    """As much of a TPU device as a mesh looks at."""

    slice_index: int
    coords: tuple[int, int, int]
    process_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def chips(slices, width=4):
    """Slices of width × width chips, hosts of 2 × 2, listed in no order that a mesh could keep."""
    hosts = width // 2
    made = [
        Chip(i, (x, y, 0), i * hosts**2 + y // 2 * hosts + x // 2)
        for x, y, i in itertools.product(range(width), range(width), range(slices))
    ]
    return made[::-1]


@pytest.mark.parametrize("model", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("slices", [1, 2, 3])
def test_the_data_axis_runs_over_slices_and_the_model_axis_stays_in_one(slices, model):
    grid = meshes.make_mesh(model=model, devices=chips(slices)).devices
    assert grid.shape == (16 * slices // model, model)
    assert set(grid.flat) == set(chips(slices))
    for row in grid:
        assert len({chip.slice_index for chip in row}) == 1
    order = [row[0].slice_index for row in grid]  # along the data axis slices vary slowest
    assert order == sorted(order) and len(set(order)) == slices


@pytest.mark.parametrize("model", [2, 4])
def test_neighbours_on_the_model_axis_are_neighbours_in_the_torus(model):
    for row in meshes.make_mesh(model=model, devices=chips(2)).devices:
        steps = np.abs(np.diff([chip.coords for chip in row], axis=0)).sum(axis=1)
        assert set(steps) <= {1, 3}  # 3 is around the edge of four


def test_a_model_axis_larger_than_a_slice_is_refused():
    with pytest.raises(ValueError, match="MODEL_PARALLELISM is 32, but a slice has 16 devices"):
        meshes.make_mesh(model=32, devices=chips(2))
    with pytest.raises(ValueError, match=r"slices have \[15, 16\] devices"):
        meshes.make_mesh(devices=chips(2)[1:])


def test_a_host_has_the_rows_of_its_chips():
    """4 × 4 chips of four hosts: over the model axis of four two hosts share rows."""
    mesh = meshes.make_mesh(model=4, devices=chips(1))
    owners = {}
    for place, row in enumerate(mesh.devices):
        for chip in row:
            owners.setdefault(chip.process_index, set()).add(place)
    assert sorted(map(sorted, owners.values())) == [[0, 1], [0, 1], [2, 3], [2, 3]]
    for process, places in owners.items():
        rows = meshes.own_rows(mesh, 12, process)
        assert rows.tolist() == [3 * place + i for place in sorted(places) for i in range(3)]
    alone = meshes.make_mesh(devices=chips(2))
    shares = [meshes.own_rows(alone, 64, process).tolist() for process in range(8)]
    assert sorted(sum(shares, [])) == list(range(64))
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 4 devices"):
        meshes.own_rows(mesh, 6, 0)


def test_parameters_are_split_by_their_logical_axes():
    mesh = meshes.make_mesh(data=4, model=2)
    got = specs(model_of(), mesh)
    layer = got["decoder"]["layers_0"]
    assert got["token_embedder"]["embedding"] == P("model", None)
    assert got["decoder"]["logits_dense"]["kernel"] == P(None, "model")
    assert layer["self_attention"]["query"]["kernel"] == P(None, "model")
    assert layer["self_attention"]["out"]["kernel"] == P("model", None)
    assert layer["mlp"]["wi_0"]["kernel"] == P(None, "model")
    assert layer["mlp"]["wo"]["kernel"] == P("model", None)
    assert layer["pre_mlp_layer_norm"]["scale"] == P(None), "vectors stay whole"
    full = specs(model_of(), mesh, fully_sharded=True)
    assert full["token_embedder"]["embedding"] == P("model", "data")
    assert full["decoder"]["layers_0"]["mlp"]["wo"]["kernel"] == P("model", "data")

    assert full["encoder"]["encoder_norm"]["scale"] == P(None), "vectors stay whole"


def test_one_mesh_axis_splits_one_dimension_of_an_array():
    mesh = meshes.make_mesh(data=4, model=2)
    shape = jax.ShapeDtypeStruct((8, 8), "float32")
    boxed = {"kernel": nn.LogicallyPartitioned(shape, ("mlp", "vocab"))}
    assert specs(boxed, mesh) == {"kernel": P("model", None)}


def test_attention_is_split_by_whole_heads_or_not_at_all():
    mesh, rules = meshes.make_mesh(data=2, model=4), meshes.rules_for(fully_sharded=True)
    assert meshes.rules_of_model(rules, 8, mesh) == rules
    whole = meshes.rules_of_model(rules, 6, mesh)
    assert {axis: (rules[axis], whole[axis]) for axis in rules if rules[axis] != whole[axis]} == {
        "heads": ("model", None), "joined_kv": ("model", None),
    }  # fmt: skip


def test_a_dimension_that_does_not_divide_stays_whole():
    mesh = meshes.make_mesh(data=2, model=4)
    got = specs(model_of(vocab_size=66, num_heads=6), mesh)
    assert got["token_embedder"]["embedding"] == P(None, None)
    assert got["encoder"]["relpos_bias"]["rel_embedding"] == P(None, None)
    assert got["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"] == P(None, "model")


def test_stacked_layers_keep_their_layer_axis_whole():
    mesh = meshes.make_mesh(data=4, model=2)
    got = specs(model_of(stacked_layers=True), mesh)
    kernel = got["encoder"]["layers"]["attention"]["query"]["kernel"]
    assert kernel == P(None, None, "model")


@pytest.mark.parametrize("stacked", [False, True])
def test_the_optimizers_state_is_split_like_its_parameters(stacked):
    mesh = meshes.make_mesh(data=4, model=2)
    boxed = model_of(emb_dim=128, mlp_dim=256, stacked_layers=stacked)
    params = nn.meta.unbox(boxed)
    shardings = meshes.parameter_shardings(mesh, boxed, meshes.rules_for(fully_sharded=True))
    where = ("layers",) if stacked else ("layers_0",)

    def spec_of(tree, *path):
        for key in ("encoder", *where, "mlp", "wi_0", "kernel"):
            tree = tree[key]
        return tree.spec

    adam = jax.eval_shape(optax.adam(1e-3).init, params)
    placed = meshes.shardings_like(mesh, adam, params, shardings)
    full = P(None, "data", "model") if stacked else P("data", "model")
    assert spec_of(placed[0].mu) == full and spec_of(placed[0].nu) == full

    factored = jax.eval_shape(optimizers.adafactor(1e-3).init, params)
    placed = meshes.shardings_like(mesh, factored, params, shardings)
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
        for path, sharding in jax.tree_util.tree_flatten_with_path(placed)[0]
    }
    rows = [spec for path, spec in leaves.items() if "v_row" in path and "mlp/wi_0" in path]
    columns = [spec for path, spec in leaves.items() if "v_col" in path and "mlp/wi_0" in path]
    lead = (None,) if stacked else ()
    # [E, F] = (data, model) reduced over one axis leaves the other's.
    assert (P(*lead, "data") in rows) != (P(*lead, "data") in columns)
    assert (P(*lead, "model") in rows) != (P(*lead, "model") in columns)


def test_an_optimizers_leaf_follows_the_parameter_of_the_longest_path():
    """`b/a/kernel` holds the path of `a/kernel` too, and is of the same shape."""
    mesh = meshes.make_mesh(data=4, model=2)
    shape = jax.ShapeDtypeStruct((8, 8), "float32")
    params = {"a": {"kernel": shape}, "b": {"a": {"kernel": shape}}}
    at = lambda *axes: jax.sharding.NamedSharding(mesh, P(*axes))  # noqa: E731
    shardings = {"a": {"kernel": at("data", None)}, "b": {"a": {"kernel": at(None, "model")}}}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    for moment in meshes.shardings_like(mesh, state, params, shardings)[0][1:]:
        assert moment["a"]["kernel"].spec == P("data", None)
        assert moment["b"]["a"]["kernel"].spec == P(None, "model")


def test_a_leaf_below_a_parameters_path_is_not_that_parameter():
    mesh = meshes.make_mesh(data=4, model=2)
    shape = jax.ShapeDtypeStruct((8, 8), "float32")
    params = {"a": {"kernel": shape}}
    shardings = {"a": {"kernel": jax.sharding.NamedSharding(mesh, P("data", None))}}
    state = {"mu": params, "other": {"a": {"kernel": {"history": shape}}}}
    placed = meshes.shardings_like(mesh, state, params, shardings)
    assert placed["mu"]["a"]["kernel"].spec == P("data", None)
    assert placed["other"]["a"]["kernel"]["history"].spec == P()


def test_a_batch_has_its_rows_over_the_data_axis():
    mesh = meshes.make_mesh(data=4, model=2)
    placed = meshes.place_batch({"tokens": np.arange(32).reshape(8, 4)}, mesh)["tokens"]
    shards = sorted((s.index[0].start, np.asarray(s.data)) for s in placed.addressable_shards[::2])
    assert [start for start, _ in shards] == [0, 2, 4, 6]
    np.testing.assert_array_equal(shards[1][1], [[8, 9, 10, 11], [12, 13, 14, 15]])
    with pytest.raises(ValueError, match="a batch of 6 does not divide over 4 devices"):
        meshes.place_batch({"tokens": np.zeros((6, 4))}, mesh)
    with pytest.raises(ValueError, match="× 2 microbatches: .* a multiple of 8"):
        meshes.check_batch_divides(12, mesh, microbatches=2)


def test_a_step_donates_its_state_and_never_its_teacher():
    mesh = meshes.make_mesh()
    whole = meshes.replicated(mesh)
    state, teacher = (jax.device_put(np.full((8, 8), x, np.float32), whole) for x in (1, 2))

    def step(state, teacher, batch):
        return state + teacher + batch.sum(), {"sum": batch.sum()}

    run = meshes.compile_step(step, mesh, whole, whole)
    new, metrics = run(state, teacher, meshes.place_batch(np.ones((8, 2), np.float32), mesh))
    np.testing.assert_array_equal(new, 1 + 2 + 16)
    assert float(metrics["sum"]) == 16
    assert state.is_deleted() and not teacher.is_deleted()


def test_activations_follow_the_rules_inside_a_mesh():
    sharding = meshes.model_sharding(meshes.make_mesh())

    def constrain(x):
        return sharding.constrain(x, ("batch", "length", "activation_embed"))

    text = jax.jit(constrain).lower(jnp.ones((8, 2, 2))).as_text()
    assert "sharding_constraint" in text or "Sharding" in text


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1, 8)])
def test_local_rows_undo_the_placing_of_a_batch(shape):
    mesh = meshes.make_mesh(*shape)
    rows = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    placed = meshes.place_batch(rows, mesh)
    assert len(placed.addressable_shards) == 8
    np.testing.assert_array_equal(meshes.local_rows(placed), rows)

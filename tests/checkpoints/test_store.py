"""A saved state comes back bit for bit on any mesh; the last and the best steps are kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gkd.checkpoints.folders import mark_in_use
from gkd.checkpoints.store import CheckpointStore

DATA_STATE = bytes(range(256)) * 2000


def test_round_trip_is_bit_exact(tmp_path, make_state, same_bits):
    store = CheckpointStore(tmp_path / "checkpoints")
    assert store.restore(make_state(0)) is None
    assert store.save(5, make_state(5), DATA_STATE)
    store.close()

    restored = CheckpointStore(tmp_path / "checkpoints").restore(make_state(0))
    assert restored.step == 5
    assert restored.data_state == DATA_STATE
    same_bits(restored.state, make_state(5))


def test_a_step_is_saved_once(tmp_path, make_state, same_bits):
    store = CheckpointStore(tmp_path)
    assert store.save(5, make_state(5))
    assert not store.save(5, make_state(6))
    same_bits(store.restore(make_state(0)).state, make_state(5))
    store.close()


@pytest.mark.parametrize(
    "mode, values, kept, best",
    [
        ("max", {1: 0.1, 2: 0.9, 3: 0.5, 4: None, 5: 0.2, 6: None}, [2, 5, 6], 2),
        ("min", {1: 0.3, 2: 0.9, 3: 0.1, 4: None, 5: 0.2, 6: None}, [3, 5, 6], 3),
        ("max", {1: 0.1, 2: float("nan"), 3: 0.1, 4: None, 5: 0.05, 6: 0.05}, [3, 5, 6], 3),
        ("max", {1: None, 2: None, 3: None, 4: None}, [3, 4], None),
    ],
)
def test_keeps_the_last_and_the_best(tmp_path, mode, values, kept, best):
    store = CheckpointStore(
        tmp_path, keep_last=2, keep_best=1, best_metric="exact_match", best_mode=mode
    )
    for step, value in values.items():
        metrics = {"loss": 1.0} if value is None else {"exact_match": value}
        store.save(step, {"params": jnp.float32(step)}, metrics=None if step == 4 else metrics)
        if step == 3:  # the policy must hold for steps saved before a restart too
            store.close()
            store = CheckpointStore(
                tmp_path, keep_last=2, keep_best=1, best_metric="exact_match", best_mode=mode
            )
    store.wait()
    assert store.best_step() == best
    expected = kept if best is None else sorted({best, *kept})
    assert store.all_steps() == expected
    assert store.latest_step() == kept[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(step) for step in expected]
    store.close()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_without_a_metric_only_the_last_are_kept(tmp_path, mode):
    store = CheckpointStore(tmp_path, keep_last=1, keep_best=3, best_mode=mode)
    for step in range(1, 6):
        store.save(step, {"params": jnp.float32(step)}, metrics={"bleu": float(10 - step)})
    store.close()
    assert store.all_steps() == [5] and store.best_step() is None


@pytest.mark.parametrize("mode, best", [("max", 3), ("min", 4)])
def test_the_newest_of_equally_good_steps_is_the_best(tmp_path, mode, best):
    store = CheckpointStore(tmp_path, keep_last=4, best_metric="bleu", best_mode=mode)
    for step, value in ((1, 9.0), (2, 1.0), (3, 9.0), (4, 1.0)):
        store.save(step, {"params": jnp.float32(step)}, metrics={"bleu": value})
    store.close()
    assert store.best_step() == best


def test_a_step_that_another_run_reads_is_kept(tmp_path):
    place = tmp_path / "run" / "checkpoints"
    store = CheckpointStore(place, keep_last=1, asynchronous=False)
    for step in (1, 2, 3):
        store.save(step, {"x": jnp.ones(step)})
        if step == 1:
            mark_in_use(place / "1", tmp_path / "other")
    assert store.all_steps() == [1, 3]
    store.close()
    mark_in_use(tmp_path / "model", tmp_path / "other")  # no step of a run
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_state_may_be_donated_right_after_save(tmp_path):
    # Nothing here looks at the arrays before they are donated: a NumPy view would keep them alive.
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)
    initial = np.arange(1 << 20, dtype=np.float32)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    state = {
        "whole": jnp.array(initial),
        "sharded": jax.device_put(initial, NamedSharding(mesh, PartitionSpec("data"))),
        "seed": jnp.arange(2, dtype=jnp.uint32),
    }
    state = update(state)
    store = CheckpointStore(tmp_path, keep_last=8)
    for step in range(1, 9):
        store.save(step, state)
        for _ in range(3):
            state = update(state)
        jax.block_until_ready(state)
    store.close()
    for step in range(8, 0, -1):
        restored = CheckpointStore(tmp_path, keep_last=8).restore(state)
        assert restored.step == step
        for name in ("whole", "sharded"):
            assert np.array_equal(np.asarray(restored.state[name]), initial + 3 * step - 2)
        assert np.array_equal(np.asarray(restored.state["seed"]), np.arange(2) + 3 * step - 2)
        (tmp_path / str(step)).rename(tmp_path / f"seen-{step}")


def test_restored_state_may_be_donated(tmp_path):
    initial = np.arange(1 << 20, dtype=np.float32)
    with_store = CheckpointStore(tmp_path)
    with_store.save(1, {"params": jnp.array(initial)})
    state = with_store.restore({"params": jnp.zeros(1 << 20)}).state
    state = jax.jit(lambda tree: {"params": tree["params"] + 1}, donate_argnums=0)(state)
    assert np.array_equal(np.asarray(state["params"]), initial + 1)
    with_store.close()


def _sharded(mesh, tree, specs):
    return jax.tree.map(
        lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh, spec)), tree, specs
    )


@pytest.mark.parametrize("shape", [(8, 1), (2, 4), (1, 1)])
def test_restores_onto_the_same_and_another_mesh(tmp_path, shape):
    values = {
        "kernel": np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32),
        "scale": np.arange(8, dtype=np.float32),
    }
    first = Mesh(np.array(jax.devices()).reshape(8, 1), ("data", "model"))
    store = CheckpointStore(tmp_path)
    store.save(
        1,
        _sharded(first, values, {"kernel": PartitionSpec("data"), "scale": PartitionSpec("data")}),
    )
    store.close()

    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    wanted = {
        "kernel": NamedSharding(Mesh(devices, ("data", "model")), PartitionSpec("data", "model")),
        "scale": NamedSharding(Mesh(devices, ("data", "model")), PartitionSpec("model")),
    }
    abstract = {
        name: jax.ShapeDtypeStruct(values[name].shape, np.float32, sharding=wanted[name])
        for name in values
    }
    state = CheckpointStore(tmp_path).restore(abstract).state
    for name, value in values.items():
        assert state[name].sharding == wanted[name]
        assert np.array_equal(np.asarray(state[name]), value)


def test_settings_that_make_no_sense_are_one_clear_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: it is a file, not a folder"):
        CheckpointStore(tmp_path / "file")
    with pytest.raises(ValueError, match="keep_last=0 must be"):
        CheckpointStore(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="best_mode='most' must be"):
        CheckpointStore(tmp_path, best_mode="most")


def test_a_state_of_another_shape_is_one_clear_line(tmp_path, make_state):
    store = CheckpointStore(tmp_path)
    store.save(3, make_state(3))
    other = make_state(0)
    other.params["encoder"]["kernel"] = jnp.zeros((16, 9))
    with pytest.raises(
        ValueError, match="encoder/kernel has float32.16, 8., wanted float32.16, 9."
    ):
        store.restore(other)
    assert store.all_steps() == [3]
    store.close()

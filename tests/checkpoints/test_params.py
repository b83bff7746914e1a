"""Parameters and description are read from any folder of a run; misfits are one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gkd.checkpoints.params import choose_step, read_description, restore_params
from gkd.checkpoints.store import CheckpointStore

DESCRIPTION = {"config": {"emb_dim": 28, "dtype": "bfloat16"}, "vocabulary": "arithmetic"}


@pytest.fixture
def run(tmp_path, make_state):
    """A run directory with the steps 1 (best), 2 and 3."""
    store = CheckpointStore(
        tmp_path / "run" / "checkpoints", best_metric="bleu", description=DESCRIPTION
    )
    for step, bleu in ((1, 30.0), (2, 10.0), (3, 20.0)):
        store.save(step, make_state(step), metrics={"bleu": bleu})
    store.close()
    return tmp_path / "run"


def test_reads_from_every_folder_of_a_run(run, make_state, same_bits):
    for place, step, expected in (
        (run, None, 3),
        (run / "checkpoints", None, 3),
        (run / "checkpoints" / "2", None, 2),
        (run / "checkpoints" / "2", "best", 2),
        (run, 2, 2),
        (run, "best", 1),
        (run, "best_or_newest", 1),
        (run / "checkpoints", "best_or_newest", 1),
        (run / "checkpoints" / "2", "best_or_newest", 2),
        (run, "newest", 3),
        (str(run), None, 3),
    ):
        same_bits(restore_params(place, make_state(0).params, step), make_state(expected).params)
    assert read_description(run) == DESCRIPTION
    assert read_description(run / "checkpoints" / "1") == DESCRIPTION


def test_without_a_wanted_tree_it_is_numpy(run, make_state):
    params = restore_params(run)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(params))
    kernel = params["decoder"]["layers_0"]["kernel"]
    expected = np.asarray(make_state(3).params["decoder"]["layers_0"]["kernel"])
    assert kernel.dtype == expected.dtype and kernel.tobytes() == expected.tobytes()


def test_onto_shardings_and_another_dtype(run, make_state):
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=sharding),
        make_state(0).params,
    )
    params = restore_params(run, abstract)
    kernel = params["encoder"]["kernel"]
    assert kernel.sharding == sharding and kernel.dtype == jnp.bfloat16
    expected = np.asarray(make_state(3).params["encoder"]["kernel"]).astype(jnp.bfloat16)
    assert np.array_equal(np.asarray(kernel), expected)


def test_another_shape_lists_up_to_five_tensors(run):
    wanted = {
        "encoder": {"kernel": jnp.zeros((16, 9))},
        "decoder": {"norm": {"scale": jnp.zeros(8)}, "layers_0": {}},
        **{f"new_{number}": jnp.zeros(1) for number in range(5)},
    }
    with pytest.raises(ValueError, match="does not fit") as error:
        restore_params(run, wanted)
    assert str(error.value) == (
        f"checkpoint {run / 'checkpoints' / '3'} does not fit the model: "
        "encoder/kernel has [16, 8], wanted [16, 9]; new_0 is missing; new_1 is missing; "
        "new_2 is missing; new_3 is missing; and 2 more differences"
    )


def test_a_left_over_tensor_is_named(run, make_state):
    wanted = make_state(0).params
    del wanted["decoder"]["norm"]
    with pytest.raises(
        ValueError, match="does not fit the model: decoder/norm/scale is left over$"
    ):
        restore_params(run, wanted)


def test_a_path_that_is_no_checkpoint_is_one_clear_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("not a folder")
    unfinished = tmp_path / "unfinished" / "checkpoints" / "7.orbax-checkpoint-tmp"
    (unfinished / "state").mkdir(parents=True)
    for place in ("empty", "file", "unfinished", unfinished, run / "checkpoints" / "3" / "state"):
        for read in (restore_params, read_description):
            with pytest.raises(
                ValueError, match=r"is not a checkpoint: give a run directory"
            ) as error:
                read(tmp_path / place)
            assert str(tmp_path / place) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="absent: there is no such folder"):
        restore_params(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"has no step 9; it has \[1, 2, 3\]"):
        restore_params(run, step=9)


def test_best_of_a_run_without_a_metric_is_an_error(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"params": {"scale": jnp.ones(2)}})
    store.close()
    with pytest.raises(ValueError, match="no best step"):
        restore_params(tmp_path, step="best")
    folder, chosen = choose_step(tmp_path, "best_or_newest")
    assert folder.name == "1"
    assert chosen == "step 1, its newest, as its run saved no metric to choose the best by"


def test_the_choice_of_a_step_is_explained(run):
    assert choose_step(run, "best_or_newest")[1] == "step 1, the best by bleu"
    assert choose_step(run)[1] == choose_step(run, "newest")[1] == "step 3, its newest"
    assert choose_step(run, 2)[1] == "step 2, as asked for"
    assert choose_step(run / "checkpoints/2", 2)[1] == "step 2, the folder given"
    with pytest.raises(ValueError, match="is step 2 of its run, not 3"):
        choose_step(run / "checkpoints/2", 3)
    for wrong in ("latest", "", "-1", -1, True):
        with pytest.raises(ValueError, match="is no step: use best_or_newest, best, newest or a"):
            choose_step(run, wrong)

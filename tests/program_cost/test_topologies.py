"""Names of topologies; with libtpu, real slices laid out and compiled for."""

import collections
import importlib.metadata
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from gkd.parallel import mesh as meshes
from gkd.program_cost.roofline import CHIPS
from gkd.program_cost.topologies import topology_chip, topology_devices


def test_a_name_says_which_chip():
    assert topology_chip("v5e:16x16") is topology_chip("3*v5e:16x16") is CHIPS["v5e"]
    assert topology_chip("cpu:8") is CHIPS["cpu"]


def test_chips_are_as_their_pages_have_them():
    """TFLOP/s in bfloat16, GB/s of HBM, Gbit/s to other chips; GiB as libtpu says is available."""
    published = {
        "v4": (275, 1200, 2400, 30.75), "v5e": (197, 819, 1600, 15.75),
        "v5p": (459, 2765, 4800, 95.74), "v6e": (918, 1638, 3200, 31.25),
    }  # fmt: skip
    for name, (compute, bandwidth, links, memory) in published.items():
        chip = CHIPS[name]
        assert (chip.flops / 1e12, chip.bandwidth / 1e9, chip.interconnect * 8 / 1e9) == (
            compute, bandwidth, links,
        )  # fmt: skip
        assert chip.memory / 2**30 == pytest.approx(memory, abs=1e-6)
    # NVIDIA's data sheets: TFLOP/s in bfloat16, dense; GB/s of HBM; GB/s of NVLink, both ways.
    sheets = {
        "a100_40gb": (312, 1555, 600, 40 * 2**30), "a100": (312, 2039, 600, 80 * 2**30),
        "h100": (989, 3350, 900, 80 * 2**30), "h200": (989, 4800, 900, 141e9),
    }  # fmt: skip
    for name, (compute, bandwidth, links, memory) in sheets.items():
        chip = CHIPS[name]
        assert (chip.flops / 1e12, chip.bandwidth / 1e9) == (compute, bandwidth)
        assert 2 * chip.interconnect / 1e9 == links
        assert chip.memory == pytest.approx(0.75 * memory, abs=1)  # JAX's default share
    assert set(CHIPS) == {"cpu", *published, *sheets}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:4x4", "topology is 'v9:4x4': use GENERATION:SHAPE"),
        ("v5e", "use GENERATION:SHAPE"),
        ("2xv5e:4x4", "use GENERATION:SHAPE, v5e:4x4 or 2"),
        ("0*v5e:4x4", "use a number of TPU slices"),
        ("*v5e:4x4", "use a number of TPU slices"),
        ("²*v5e:4x4", "use a number of TPU slices"),
        ("2*cpu:4", "topology is '2.cpu:4': use a number of TPU slices"),
        ("2*h100:8", "topology is '2.h100:8': use a number of TPU slices"),
    ],
)
def test_a_name_that_says_nothing_is_refused(name, message):
    for function in (topology_chip, topology_devices):
        with pytest.raises(ValueError, match=message):
            function(name)


def test_without_libtpu_the_message_is_the_command_for_this_jax(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    command = f"pip install 'jax[tpu]=={importlib.metadata.version('jax')}'"
    with pytest.raises(ImportError, match=re.escape(command)):
        topology_devices("v5e:4x4")


@pytest.mark.parametrize(
    ("name", "slices", "size"), [("2*v5e:4x4", 2, 16), ("v5e:4x4", 1, 16), ("3*v4:2x2x2", 3, 8)]
)
def test_slices_of_tpus_are_laid_out_and_compiled_for(name, slices, size):
    pytest.importorskip("libtpu")
    devices = topology_devices(name)
    counts = collections.Counter(getattr(one, "slice_index", None) or 0 for one in devices)
    assert dict(counts) == dict.fromkeys(range(slices), size)
    mesh = meshes.make_mesh(model=4, devices=devices)
    for row in mesh.devices:
        assert len({getattr(one, "slice_index", None) for one in row}) == 1
        steps = np.abs(np.diff([one.coords for one in row], axis=0)).sum(axis=1)
        assert set(steps) <= ({1, 3} if size == 16 else {1, 2})
    rows = NamedSharding(mesh, P("data"))
    x = jax.ShapeDtypeStruct((slices * size, 256), jnp.float32, sharding=rows)
    text = jax.jit(lambda x: jnp.sum(x, 0)).lower(x).compile().as_text()
    # Each slice adds its own up, and sends the sum to the others through the hosts' network.
    assert "all-reduce" in text and f"num_partitions={size}" in text
    assert ("xla_megascale" in text) == (slices > 1)

"""Who takes part in a comparison: those that can be imported, each in its own Python."""

import argparse
import subprocess
import sys

from benchmarks import participants


def test_an_implementation_that_cannot_be_imported_is_named_with_its_reason(capsys):
    given = argparse.Namespace(peer_python=sys.executable, t5x=["/somewhere"])
    needs = {"gkd": "gkd", "peer": "gkd_peer_that_is_not_here", "another": "json"}
    pythons, environment = participants.available(needs, ["gkd", "peer"], given)
    assert pythons == {"gkd": sys.executable}
    said = capsys.readouterr().out
    assert said.startswith("peer does not take part: ModuleNotFoundError") and "another" not in said
    assert "/somewhere" in environment["PYTHONPATH"].split(":")


def test_what_t5x_imports_and_no_index_has_is_empty_classes():
    """The very imports and uses of T5X's modules, which define nothing else of these packages."""
    given = argparse.Namespace(peer_python=sys.executable, t5x=None)
    _, environment = participants.available({"gkd": "gkd"}, ["gkd"], given)
    program = """
import airio.core as airio
from jestimator import amos, amos_helper
from typing import Union
Union[int, airio.AirIODatasetIterator]
assert not isinstance(3, (airio.Task, airio.dataset_providers))
{amos.ScaleByAmosState: amos_helper.state_partition_rule}
"""
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)

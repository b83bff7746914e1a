"""The programs of the sweeps' cells that are no run file's, traced at full size."""

from tests.configs import traces


def test_every_cell_of_a_sweep_traces_at_full_size(real_vocabulary):
    found = traces.programs(sweeps=True)
    assert len(found) > 20
    for command, program in found.values():
        traces.trace(command, program)

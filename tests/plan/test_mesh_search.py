"""A search over meshes and microbatches: what it tries, how it ranks, what stops it not."""

import dataclasses
import json

import pytest

from gkd.errors import IndivisibleBatch
from gkd.plan import mesh_search, program_report, programs
from tests.plan.planning import plan, run_out


def test_a_search_ranks_what_divides(capsys, monkeypatch):
    """Of three candidates the first is compiled, the others take half and twice its time."""
    measure, found = programs.measure, []

    def measured(lower, chip, share):
        factor = (1.0, 0.5, 2.0)[len(found)]
        first = found[0] if found else measure(lower, chip, share)
        seconds = {part: factor * time for part, time in first.seconds.items()}
        found.append(dataclasses.replace(first, seconds=seconds))
        return found[-1]

    monkeypatch.setattr(program_report, "measure", measured)
    said = plan(capsys, "--topology=cpu:2", "--search", "--gin.BATCH_SIZE=2")
    tried, ranked = said.split("ranked:")
    assert "data:2,model:1 × 1 microbatches: fits" in tried
    assert "data:1,model:2 × 2 microbatches: fits" in tried
    assert "data:2,model:1 × 2 microbatches" not in tried  # one row a chip
    times = [
        float(line.split(" ms (roofline lower bound)")[0].split()[-1])
        for line in ranked.strip().splitlines()
    ]
    assert times == sorted(times)
    assert [time / times[1] for time in times] == pytest.approx([0.5, 1.0, 2.0], rel=0.1)


def test_a_search_goes_on_when_candidates_fail(capsys, monkeypatch, tmp_path):
    """One runs out of memory, another is refused by the compiler: both are among the results."""
    measure = programs.measure
    fates = iter([run_out, None])

    def measured(lower, chip, share):
        fate = next(fates, measure)
        if fate is None:
            raise RuntimeError("INTERNAL: Mosaic failed\nto compile")
        return fate(lower, chip, share)

    monkeypatch.setattr(program_report, "measure", measured)
    output = tmp_path / "plan.json"
    options = ("--topology=cpu:2", "--search", "--gin.BATCH_SIZE=2", f"--output={output}")
    said = plan(capsys, *options)
    assert "data:2,model:1 × 1 microbatches: does NOT fit: 20.12 of 16.00 GiB" in said
    assert "does not compile: RuntimeError: INTERNAL: Mosaic failed to compile" in said
    found = json.loads(output.read_text())["candidates"]
    assert [one["fits"] for one in found] == [True, False, False]
    assert "failed" in found[2]


def test_a_search_in_which_nothing_fits_says_what_to_change(capsys, monkeypatch):
    monkeypatch.setattr(program_report, "measure", run_out)
    said = plan(capsys, "--topology=cpu:1", "--search", "--gin.BATCH_SIZE=2")
    assert "no candidate fits" in said and "change: " in said


@pytest.mark.parametrize(
    ("chips", "slices", "axes"),
    [(8, 1, {1, 2, 4, 8}), (24, 3, {1, 2, 4, 8}), (64, 2, {1, 2, 4, 8, 16})],
)
def test_a_model_axis_stays_inside_a_slice(chips, slices, axes):
    tried = set()

    def trace(model_parallelism, microbatches):
        tried.add(model_parallelism)
        raise IndivisibleBatch("a batch of 7 does not divide")

    with pytest.raises(ValueError, match="no mesh and number of microbatches divides the batch"):
        mesh_search.search_meshes(trace, chips, slices, dict, print, print)
    assert tried == axes


def test_the_halves_of_a_step_are_one_candidate(monkeypatch):
    """The larger half's memory, both times; refused where either is."""
    halves = {
        "rollout": {"peak_bytes": 2, "seconds": 3.0, "seconds_without_overlap": 3.5},
        "update": {"peak_bytes": 5, "seconds": 4.0, "seconds_without_overlap": 4.5},
    }
    for half in halves.values():
        half |= {"fits": True, "capacity_bytes": 9}
    monkeypatch.setattr(mesh_search, "step_programs", lambda program: halves)
    saved = []

    def search():
        mesh_search.search_meshes(
            lambda **given: None, 1, 1, lambda _, __, half: half, print, saved.append
        )

    search()
    keys = ("peak_bytes", "seconds", "seconds_without_overlap")
    assert [[one[key] for key in keys] for one in saved[-1]["candidates"]] == [[5, 7.0, 8.0]] * 5
    halves["rollout"] |= {"seconds": None, "refused": "they differ"}
    search()
    assert {one["refused"] for one in saved[-1]["candidates"]} == {"they differ"}

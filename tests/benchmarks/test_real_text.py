"""The table of a comparison on real lengths."""

import pytest

from benchmarks import real_text


def entry(seconds, batches=2, tokens=100.0, positions=150.0):
    stratum = {"batch": 0, "batches": batches, "tokens": tokens, "positions": positions}
    return {"strata": [stratum], "seconds": [[one] for one in seconds]}


def test_rates_are_medians_of_real_tokens_and_ratios_are_by_round():
    text = real_text.table(
        "sft", {"gkd, sft": entry([1.0, 2.0, 4.0]), "t5x, sft": entry([2.0, 2.0, 5.0], tokens=50.0)}
    )
    ours, theirs = text.splitlines()[-2:]
    assert ours == "| gkd, sft | 100 | 1.50 | 2.00 | 50 (25–100) | 1.00 (1.00–1.00) |"
    # Per token: 1/100 against 2/50, 2/100 against 2/50, 4/100 against 5/50.
    assert theirs == "| t5x, sft | 50 | 3.00 | 2.00 | 25 (10–25) | 0.40 (0.25–0.50) |"


def test_overrides_without_a_gin_file_are_refused():
    with pytest.raises(SystemExit, match="give --gin_file"):
        real_text.main(["--gin.INPUT_LENGTH=3", "--directory=/nonexistent"])

"""The printed lines of a plan, from records by hand."""

from gkd.plan import report_lines

RUN = {"examples_per_second": 640.0, "mfu": 0.65, "chip_hours": 9.0, "price": 10.8}
SLOWER = {"examples_per_second": 435.0, "mfu": 0.44, "chip_hours": 13.2, "price": 15.84}
RANGE = {"roofline_lower_bound": RUN, "without_overlap": SLOWER}


def test_what_a_run_takes_is_a_range_by_name():
    shape = {"lengths": {"inputs": 64}, "share": 0.25, "seconds": 0.02, "useful_flops": 1.0}
    record = {
        "padding": 0.17, "shapes": [shape | {"seconds_without_overlap": 0.03}],
        "seconds": 0.0499, "seconds_without_overlap": 0.0735, "run": RANGE,
    }  # fmt: skip
    assert "\n".join(report_lines.lengths_lines("step", record)) == (
        "\nstep, over the lengths of its batches (17% padding):\n"
        "  inputs 64: 25.0% of the batches, 20.00 ms (roofline lower bound) to 30.00 ms (without "
        "overlap)\n"
        "  mean: 49.90 ms (roofline lower bound) to 73.50 ms (without overlap)\n"
        "  640.0 to 435.0 examples/s, MFU 65.0% to 44.0%, 9.0 to 13.2 chip-hours for the run, "
        "price 10.80 to 15.84 (roofline lower bound to without overlap)"
    )


def test_a_candidate_that_fits_has_the_range_of_its_time():
    estimate = {
        "data": 4, "model_parallelism": 2, "microbatches": 1, "fits": True,
        "peak_bytes": 2**30, "capacity_bytes": 2**31, "seconds": 0.001,
        "seconds_without_overlap": 0.002,
    }  # fmt: skip
    assert report_lines.candidate(estimate) == (
        "data:4,model:2 × 1 microbatches: fits: 1.00 of 2.00 GiB, 1.00 ms (roofline lower bound) "
        "to 2.00 ms (without overlap)"
    )

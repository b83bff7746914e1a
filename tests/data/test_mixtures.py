"""Mixtures: T5's rates, exact counts, an even order; rows, resumes and metrics of mixed tasks."""

import dataclasses
import functools
from fractions import Fraction

import numpy as np
import pytest

from gkd.data import mixtures, pipeline, prompts, sources, tasks
from gkd.data.task_spec import NUMBERS, make_task
from gkd.metrics import metrics
from gkd.vocabularies import vocabularies
from gkd.vocabularies.tensorflow_host import seqio

BYTES = vocabularies.byte_level()


def made(name, rows, metric_fns=(metrics.exact_match,), vocabulary=BYTES, **splits):
    """A task whose train rows are `name0 → 0`, `name1 → 1` …, and further splits of other sizes."""
    sizes = {"train": rows, **splits}

    def rows_of(split):
        return [{"input": f"{name}{split[0]}{i}", "target": str(i)} for i in range(sizes[split])]

    source = sources.rows_source(rows_of, ("input", "target"), tuple(sizes))
    texts = prompts.text_to_text("input", "target")
    return make_task(name, source, texts, vocabulary, metric_fns)


def inputs_of(task, split="train"):
    return list(pipeline.tokenized_split(task, split, texts=True).columns["inputs"].texts)


@pytest.mark.parametrize("maximum", [None, 30])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_proportional_rates_are_seqios(maximum, temperature):
    expected = []
    for rows in (10, 40, 90):
        source = seqio.FunctionDataSource(
            lambda split, shuffle_files: None, splits=["train"], num_input_examples={"train": rows}
        )
        task = seqio.Task("rate", source=source, output_features={}, preprocessors=[])
        rate = functools.partial(
            seqio.mixing_rate_num_examples, maximum=maximum, temperature=temperature
        )
        expected.append(rate(task))
    found = mixtures.proportional_rates([10, 40, 90], maximum, temperature)
    assert found == pytest.approx(expected)
    if (maximum, temperature) == (30, 1.0):
        assert found == [10, 30, 30]


@pytest.mark.parametrize(
    ("sizes", "rates", "rows", "counts"),
    [
        ([10, 40, 90], [10, 40, 90], None, (10, 40, 90)),  # proportional: every row once
        ([10, 40, 90], [1, 1, 1], None, (90, 90, 90)),  # the largest sets the epoch
        ([10, 90], [3, 1], None, (270, 90)),
        ([10, 90], [0.1, 0.9], None, (10, 90)),  # decimals are taken as written
        ([10, 90], [1, 2], 10, (3, 7)),  # 3 1/3 and 6 2/3
        ([5, 5, 5], [1, 1, 1], 4, (2, 1, 1)),
        ([7, 3], [10, 30], None, (7, 21)),
    ],
)
def test_row_counts(sizes, rates, rows, counts):
    assert mixtures.row_counts(sizes, rates, rows) == counts
    total = sum(counts)
    for count, rate in zip(counts, rates, strict=True):
        exact = Fraction(str(rate)) / sum(Fraction(str(rate)) for rate in rates) * total
        assert abs(count - exact) < 1


def test_the_order_is_even_and_repeats_whole_components():
    order = mixtures.interleaved([2, 5], [4, 8]).tolist()
    # Places: ⅛ ⅜ ⅝ ⅞ of the first, 1/16 3/16 … of the second.
    assert [row < 2 for row in order] == [False, True, False] * 4
    assert [row for row in order if row < 2] == [0, 1, 0, 1]
    second = [row - 2 for row in order if row >= 2]
    assert second[:5] == [0, 1, 2, 3, 4]
    assert second[5:] == sorted(set(second[5:]))  # the other three are different rows
    assert mixtures.interleaved([3, 1], [3, 0]).tolist() == [0, 1, 2]


def test_an_epoch_of_a_mixture_holds_every_row_in_the_rates():
    task = tasks.mixture([made("a", 10), made("b", 30)], [1, 1], name="mixed")
    rows = inputs_of(task)
    assert len(rows) == 60
    assert {name: rows.count(name) for name in rows} == {
        **{f"at{i}": 3 for i in range(10)},
        **{f"bt{i}": 1 for i in range(30)},
    }
    for start in range(0, 60, 10):  # even: each ten has five of each
        assert sum(name.startswith("a") for name in rows[start : start + 10]) == 5
    capped = tasks.mixture([made("a", 10), made("b", 30)], name="mixed", maximum=15)
    rows = inputs_of(capped)
    assert len(rows) == 50
    assert sum(name.startswith("b") for name in rows) == 30
    short = tasks.mixture([made("a", 10), made("b", 30)], name="mixed", rows=8)
    assert sum(name.startswith("a") for name in inputs_of(short)) == 2


def test_other_splits_hold_every_row_once_of_the_components_that_have_them():
    parts = [made("a", 3, validation=2, test=1), made("b", 3, validation=6), made("c", 3)]
    task = tasks.mixture(parts, [9, 1, 1], name="mixed")
    assert set(task.splits) == {"train", "validation", "test"}
    assert inputs_of(task, "validation") == ["bv0", "av0", "bv1", "bv2", "bv3", "av1", "bv4", "bv5"]
    assert inputs_of(task, "test") == ["at0"]


def test_a_mixture_of_mixtures():
    inner = tasks.mixture([made("a", 2, validation=1), made("b", 2)], name="inner")
    outer = tasks.mixture([inner, made("c", 4)], [1, 1], name="outer")
    assert sorted(inputs_of(outer)) == ["at0", "at1", "bt0", "bt1", "ct0", "ct1", "ct2", "ct3"]


def test_training_on_a_mixture_resumes_exactly():
    task = tasks.mixture([made("a", 5), made("b", 12)], [1, 2], name="mixed")

    def batches():
        return pipeline.training_batches(task, "train", 4, 8, 4, seed=3)

    first = batches()
    for _ in range(7):
        next(first)
    second = batches()
    second.restore(first.state())
    for _ in range(5):
        a, b = next(first), next(second)
        np.testing.assert_array_equal(a["encoder_input_tokens"], b["encoder_input_tokens"])
    assert first.rows == 18


def test_seqio_itself_can_read_the_mixture():
    task = tasks.mixture([made("a", 2), made("b", 2)], name="mixed")
    assert seqio.get_mixture_or_task("mixed") is task.task
    rows = task.task.get_dataset(None, split="train", shuffle=False).as_numpy_iterator()
    data = pipeline.tokenized_split(task, "train")
    found = [row["inputs"].tolist() for row in rows]
    assert found == [
        list(map(int, x))
        for x in np.split(data.columns["inputs"].tokens, data.columns["inputs"].offsets[1:-1])
    ]


def test_every_component_is_measured_by_its_own_metrics():
    def count(targets, predictions):
        return {"rows": float(len(targets))}

    parts = [
        made("a", 1, validation=2),
        made("b", 1, [metrics.exact_match, count], validation=3),
    ]
    task = tasks.mixture(parts, name="mixed", metric_fns=[count])
    data = pipeline.tokenized_split(task, "validation", texts=True)
    wrong = {"av1", "bv0", "bv2"}
    predictions = [
        "?" if prompt in wrong else target
        for prompt, target in zip(
            data.columns["inputs"].texts, data.columns["targets"].texts, strict=True
        )
    ]
    assert task.evaluate(
        data.columns["targets"].texts, predictions, data.columns["inputs"].texts
    ) == {
        "rows": 5.0,
        "a/exact_match": 50.0,
        "b/exact_match": pytest.approx(100 / 3),
        "b/rows": 3.0,
        "macro_exact_match": pytest.approx((50 + 100 / 3) / 2),
    }
    assert task.evaluate(data.columns["targets"].texts, predictions) == {"rows": 5.0}
    assert task.evaluate(["0"], ["0"], ["at0"])["a/exact_match"] == 100.0  # a training row
    with pytest.raises(ValueError, match="no component of the mixture has the row 'else'"):
        task.evaluate(["0"], ["0"], ["else"])
    with pytest.raises(ValueError, match="give the inputs"):
        tasks.mixture(parts, name="mixed").evaluate(["0"], ["0"])


def test_bad_mixtures_are_one_line():
    a, b = made("a", 2), made("b", 2)
    with pytest.raises(ValueError, match="different names, not \\['a', 'a'\\]"):
        tasks.mixture([a, a])
    with pytest.raises(ValueError, match="different names"):
        tasks.mixture([])
    for rates in ([1], [1, 0], [1, -1]):
        with pytest.raises(ValueError, match="give a positive one to each of a, b"):
            tasks.mixture([a, b], rates)
    with pytest.raises(ValueError, match="rows=0"):
        tasks.mixture([a, b], rows=0)
    other = made("c", 2, vocabulary=vocabularies.byte_level(extra_ids=3))
    with pytest.raises(ValueError, match="a and c differ in vocabulary: one has 259 ids"):
        tasks.mixture([a, other])
    empty = tasks.mixture([a, made("none", 0)], [1, 1], name="mixed")
    with pytest.raises(ValueError, match="has no rows"):
        inputs_of(empty)


def test_one_component_may_have_several_references(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"input": "p", "target": ["1", "2"]}\n')
    several = tasks.local_text({"dev": str(tmp_path / "a.jsonl")}, vocabulary=BYTES)
    task = tasks.mixture([several, made("b", 2, dev=1)])
    data = pipeline.evaluation_batches(task, "dev", 2, 9, 9)
    assert dict(zip(data.inputs, data.references, strict=True)) == {"p": ("1", "2"), "bd0": ("0",)}
    found = task.evaluate(data.references, ["2" if i == "p" else "3" for i in data.inputs],
                          data.inputs)  # fmt: skip
    assert (found["local_text/rouge1"], found["b/exact_match"]) == (100, 0)


def test_options_and_answers_of_the_components_are_the_mixtures():
    def scored(name):
        return dataclasses.replace(made(name, 2), choices=lambda text, _: ((text, name), 0))

    mixed = tasks.mixture([scored("a"), scored("b")], [1, 1], name="mixed")
    assert mixed.choices("at1", "1") == (("at1", "a"), 0)
    assert mixed.choices("bt0", "0") == (("bt0", "b"), 0)
    with pytest.raises(ValueError, match="mixture mixed: the options of a are scored, while other"):
        tasks.mixture([scored("a"), made("b", 2)], [1, 1], name="mixed")
    numbers = [dataclasses.replace(made(name, 2), **NUMBERS) for name in "ab"]
    assert tasks.mixture(numbers, name="mixed").evaluate_samples(["3"], [["3", "3"]])["maj@2"]
    other = tasks.mixture([numbers[0], made("b", 2)], name="mixed")
    assert other.answer_of is None and other.choices is None

"""The input pipeline: batches by hand, epochs, exact resume, shards, evaluation."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from gkd.data import pipeline, tasks
from gkd.vocabularies import vocabularies

BYTES = vocabularies.byte_level()
ROWS = 23


@pytest.fixture(scope="module")
def letters(tmp_path_factory):
    """23 rows, a/A … w/W, each a single letter."""
    path = tmp_path_factory.mktemp("data") / "letters.jsonl"
    rows = [{"input": chr(97 + i), "target": chr(65 + i)} for i in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.local_text({"train": str(path), "validation": str(path)}, vocabulary=BYTES)


def written(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"input": source, "target": target}) + "\n" for source, target in rows)
    )
    return tasks.local_text({"train": str(path)}, vocabulary=BYTES)


def ids(batch):
    """Row numbers of a batch of `letters`."""
    inputs, targets = batch["encoder_input_tokens"], batch["decoder_target_tokens"]
    assert (inputs[:, 0] - 97 == targets[:, 0] - 65).all()
    assert (inputs[:, 1:] == [1, 0]).all()
    assert (targets[:, 1:] == [1]).all()
    numbers = (inputs[:, 0] - 97 - 3).tolist()
    assert batch["rows"].tolist() == numbers
    return numbers


def batches(task, size=4, seed=0, **options):
    return pipeline.training_batches(task, "train", size, 3, 2, seed, **options)


def test_one_batch_by_hand(tmp_path):
    task = written(
        tmp_path, [("ab", "cd"), ("abcd", "wxyz"), ("", "c"), ("a", " \n"), ("abc", "d")]
    )
    batch = next(pipeline.training_batches(task, "train", 5, 4, 3, seed=0, shuffle=False))
    a = 97 + 3
    assert batch["encoder_input_tokens"].tolist() == [
        [a, a + 1, 1, 0],
        [a, a + 1, a + 2, 1],  # cut: still ends
        [1, 0, 0, 0],
        [a, 1, 0, 0],
        [a, a + 1, a + 2, 1],  # just fits
    ]
    assert batch["decoder_target_tokens"].tolist() == [
        [a + 2, a + 3, 1],
        [a + 22, a + 23, a + 24],  # cut: no EOS
        [a + 2, 1, 0],
        [32 + 3, 10 + 3, 1],  # nothing but white space: empty, and kept as it is
        [a + 3, 1, 0],
    ]
    assert batch["example_weights"].tolist() == [1, 1, 0, 0, 1]
    assert (batch["inputs_cut"], batch["targets_cut"], batch["empty_examples"]) == (1, 1, 2)
    kinds = [batch[name].dtype for name in list(batch)[:3]]
    assert kinds == [np.int32, np.int32, np.float32]


def test_every_row_once_an_epoch_in_another_order(letters):
    stream = batches(letters)
    numbers = sum((ids(next(stream)) for _ in range(ROWS)), [])  # 92 = 4 epochs of 23
    epochs = [numbers[i : i + ROWS] for i in range(0, len(numbers), ROWS)]
    assert all(sorted(epoch) == list(range(ROWS)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    unshuffled = batches(letters, shuffle=False)
    assert sum((ids(next(unshuffled)) for _ in range(8)), []) == [i % ROWS for i in range(32)]


def test_order_depends_on_the_seed_only(letters):
    first, again, other = batches(letters), batches(letters), batches(letters, seed=1)
    a, b, c = ([ids(next(stream)) for _ in range(10)] for stream in (first, again, other))
    assert a == b != c


def test_a_batch_that_would_hold_a_row_twice_is_refused(letters, tmp_path):
    assert sorted(ids(next(batches(letters, size=ROWS)))) == list(range(ROWS))
    with pytest.raises(ValueError, match="has 23 rows, fewer than a batch of 24.*lower BATCH_SIZE"):
        batches(letters, size=ROWS + 1)
    rows = {"train": 30}
    few = tasks.arithmetic(rows=rows, max_examples=3)
    with pytest.raises(ValueError, match="MAX_EXAMPLES is 3, fewer than a batch of 4") as error:
        batches(few)
    assert "\n" not in str(error.value)
    next(
        pipeline.training_batches(tasks.arithmetic(rows=rows, max_examples=4), "train", 4, 9, 9, 0)
    )


def test_unknown_tokens_of_targets_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"input": "{", "target": "8 9"}, {"input": "8", "target": "8 { 9 {"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    small = vocabularies.arithmetic()
    unknown = pipeline.training_batches(
        tasks.local_text({"train": str(path)}, vocabulary=small), "train", 2, 9, 9, 0
    ).count_unknown()
    assert unknown == (2, 6)  # ▁8 ▁9, and ▁8 ▁{ ▁9 ▁{, whose brace is no piece
    letters = tasks.local_text({"train": str(path)}, vocabulary=BYTES)
    tokens = pipeline.training_batches(letters, "train", 2, 9, 9, 0).count_unknown()
    assert tokens == (0, 3 + 7)


@pytest.mark.parametrize("consumed", [0, 1, 5, 6, 40])
def test_resume_is_exact(letters, consumed):
    stream = batches(letters)
    for _ in range(consumed):
        next(stream)
    state = stream.state()
    expected = [next(stream) for _ in range(12)]
    resumed = batches(letters)
    for _ in range(15):  # into its third epoch, so that it must also find its way back
        next(resumed)
    resumed.restore(state)
    for batch in expected:
        other = next(resumed)
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])
    assert resumed.state() == stream.state()
    assert len(state) < 500


def test_resume_in_another_process():
    options = '{"rows": {"train": 37}, "steps": 2}'
    stream = pipeline.training_batches(
        tasks.arithmetic(**json.loads(options)), "train", 8, 16, 24, seed=5
    )
    for _ in range(7):
        next(stream)
    state = stream.state().decode()
    assert json.loads(state)["position"] == 56
    code = f"""
import sys
from gkd.data import pipeline, tasks
stream = pipeline.training_batches(tasks.arithmetic(**{options}), "train", 8, 16, 24, seed=5)
stream.restore(sys.argv[1].encode())
for _ in range(6):
    batch = next(stream)
    print(batch["encoder_input_tokens"].tolist(), batch["decoder_target_tokens"].tolist())
"""
    command = [sys.executable, "-c", code, state]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = [next(stream) for _ in range(6)]
    assert done.stdout.splitlines() == [
        f"{b['encoder_input_tokens'].tolist()} {b['decoder_target_tokens'].tolist()}"
        for b in expected
    ]
    assert done.stderr == ""  # TensorFlow says nothing


def test_hosts_share_out_the_global_batch_whatever_their_number(letters):
    whole = batches(letters, size=6)
    expected = [ids(next(whole)) for _ in range(9)]
    for hosts in (np.split(np.arange(6), 3), [np.array([0, 1, 4]), np.array([2, 3, 5])]):
        streams = [batches(letters, size=6, own_rows=rows) for rows in hosts]
        shared_out = [[], [], [], [], []]
        for step in range(5):
            for rows, stream in zip(hosts, streams, strict=True):
                shared_out[step] += zip(rows.tolist(), ids(next(stream)), strict=True)
        assert [[one for _, one in sorted(batch)] for batch in shared_out] == expected[:5]
        state = streams[0].state()
        assert {stream.state() for stream in streams} == {state}
        one = batches(letters, size=6)
        one.restore(state)
        assert [ids(next(one)) for _ in range(4)] == expected[5:]


def test_a_position_of_other_data_is_refused(letters, tmp_path):
    stream = batches(letters)
    state = stream.state()
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        batches(letters, seed=1).restore(state)
    with pytest.raises(ValueError, match="shuffle was True, now False"):
        batches(letters, shuffle=False).restore(state)
    changed = written(
        tmp_path, [(chr(97 + i), chr(65 + i)) for i in range(ROWS - 1)] + [("w", "X")]
    )
    with pytest.raises(ValueError, match="data was "):
        batches(changed).restore(state)
    for damaged in (
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        state[:-1],
        state.replace(b'tion": 0', b'tion": -4'),
    ):
        with pytest.raises(ValueError, match="position is damaged"):
            batches(letters).restore(damaged)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4, "own_rows": np.array([2, 4])}, "rows of a batch of 4, ascending"),
        ({"size": 4, "own_rows": np.array([1, 0])}, "rows of a batch of 4, ascending"),
        ({"size": 0}, "batch_size=0"),
    ],
)
def test_bad_sizes_are_one_line(letters, options, message):
    with pytest.raises(ValueError, match=message) as error:
        batches(letters, **options)
    assert "\n" not in str(error.value)


def test_unknown_or_empty_splits_are_one_line(letters, tmp_path):
    with pytest.raises(ValueError, match="no split 'dev'; it has train, validation"):
        pipeline.training_batches(letters, "dev", 4, 3, 2, 0)
    empty = written(tmp_path, [("", "a"), ("b", "")])
    with pytest.raises(ValueError, match="all 2 rows of split 'train' are empty"):
        batches(empty)
    with pytest.raises(ValueError, match="all 2 rows of split 'train' are empty"):
        pipeline.evaluation_batches(empty, "train", 4, 3, 2)


def test_evaluation_in_order_padded_with_weight_zero(letters):
    data = pipeline.evaluation_batches(letters, "validation", 10, 3, 2)
    assert len(data.batches) == 3
    assert [ids(batch) for batch in data.batches[:2]] == [[*range(10)], [*range(10, 20)]]
    last = data.batches[2]
    assert last["example_weights"].tolist() == [1] * 3 + [0] * 7
    assert (last["encoder_input_tokens"][3:] == 0).all()
    assert last["decoder_target_tokens"].shape == (10, 2)
    assert "".join(data.inputs) == "abcdefghijklmnopqrstuvw"
    assert "".join(data.targets) == "ABCDEFGHIJKLMNOPQRSTUVW"
    few = pipeline.evaluation_batches(letters, "validation", 10, 3, 2, max_examples=4)
    assert (few.inputs, len(few.batches)) == (("a", "b", "c", "d"), 1)


def test_evaluation_leaves_out_empty_examples_and_counts_cuts(tmp_path):
    task = written(tmp_path, [("ab", "long text"), ("", "x"), ("abcdef", "y"), ("c", "z")])
    data = pipeline.evaluation_batches(task, "train", 2, 4, 4)
    assert data.targets == ("long text", "y", "z")  # whole, though its tokens are cut
    assert (data.inputs_cut, data.targets_cut, data.empty_examples) == (1, 1, 1)
    assert [batch["example_weights"].tolist() for batch in data.batches] == [[1, 1], [1, 0]]
    assert [batch["rows"].tolist() for batch in data.batches] == [[0, 2], [3, -1]]
    assert data.batches[0]["rows"].dtype == np.int64


def test_evaluation_compares_with_every_reference(tmp_path):
    task = written(tmp_path, [("a", ["x", "y"]), ("", "z"), ("c", "w")])
    data = pipeline.evaluation_batches(task, "train", 2, 4, 4)
    assert (data.targets, data.references) == (("x", "w"), (("x", "y"), ("w",)))
    task = dataclasses.replace(task, group_of=lambda _, target: target)
    found = task.evaluate(data.references, ["y", "x"], data.inputs)
    assert (found["rouge1"], found["x/rouge1"], found["w/rouge1"]) == (50, 100, 0)
    plain = written(tmp_path, [("a", "x")])
    assert pipeline.evaluation_batches(plain, "train", 1, 4, 4).references == ("x",)


def test_evaluation_over_hosts(letters):
    whole = pipeline.evaluation_batches(letters, "validation", 6, 3, 2)
    for rows in np.array([0, 1]), np.array([2, 5]):
        part = pipeline.evaluation_batches(letters, "validation", 6, 3, 2, own_rows=rows)
        assert len(part.batches) == len(whole.batches) > 1
        for own, batch in zip(part.batches, whole.batches, strict=True):
            for name in ("encoder_input_tokens", "decoder_target_tokens", "example_weights"):
                np.testing.assert_array_equal(own[name], batch[name][rows])
        assert part.targets == whole.targets


def test_a_batch_takes_under_ten_milliseconds():
    task = tasks.arithmetic(rows={"train": 300})
    stream = pipeline.training_batches(task, "train", 32, 24, 44, seed=0)
    next(stream)
    seconds = []
    for _ in range(50):
        start = time.perf_counter()
        next(stream)
        seconds.append(time.perf_counter() - start)
    assert np.median(seconds) < 0.01


def test_real_text_is_cut_where_its_readme_says(shared, monkeypatch):
    monkeypatch.setenv("GKD_VOCABULARY", str(shared / "data/t5_vocab/spiece.model"))
    files = {"train": str(shared / "data/tatoeba_en_de/train.jsonl")}
    task = tasks.local_text(files, input_field="en", target_field="de")
    data = pipeline.tokenized_split(task, "train")
    inputs, targets = (data.columns[name].lengths - 1 for name in ("inputs", "targets"))
    # mean / p50 / p95 / max without EOS, from the data's README
    for lengths, stated in ((inputs, (6, 6, 8, 17)), (targets, (7, 7, 11, 23))):
        found = (lengths.mean(), *np.percentile(lengths, [50, 95]), lengths.max())
        assert tuple(round(float(x)) for x in found) == stated
    assert data.columns["inputs"].tokens.dtype == np.uint16

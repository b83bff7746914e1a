"""Batches of rows of similar lengths, and in parts of them: their rows, padding, resumes, hosts."""

import json

import numpy as np
import pytest

from gkd.data import pipeline, tasks
from gkd.data.part_lengths import PartSizes
from gkd.vocabularies import vocabularies

BYTES = vocabularies.byte_level()


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """500 rows of 1 to 120 letters; each begins with its number."""
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    lengths = np.random.default_rng(0).integers(1, 120, 500)
    rows = [{"input": f"{i} " + "a" * int(n), "target": "b"} for i, n in enumerate(lengths)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tasks.local_text({"train": str(path)}, vocabulary=BYTES)


def of_similar_lengths(task, size=24, **options):
    return pipeline.training_batches(task, "train", size, 128, 4, 3, buckets="batches", **options)


def of_one_length(task):
    return pipeline.training_batches(task, "train", 24, 128, 4, 3)


def test_rows_of_similar_lengths_are_padded_to_theirs(texts):
    stream, sizes, padding, seen = of_similar_lengths(texts), set(), 0, []
    for _ in range(500 // 24):
        batch = next(stream)
        tokens = batch["encoder_input_tokens"]
        sizes.add(tokens.shape[1])
        assert (tokens[:, -1] <= 1).all()  # nothing is cut: the end, or padding
        zeros = (tokens == 0).sum() + (batch["decoder_target_tokens"] == 0).sum()
        assert batch["padding"] == zeros
        assert batch["positions"] == tokens.size + batch["decoder_target_tokens"].size
        padding += batch["padding"] / batch["positions"]
        seen += batch["rows"].tolist()
    assert len(sizes) > 2 and len(set(seen)) == len(seen) == 480
    whole = next(of_one_length(texts))
    assert padding / 20 < 0.3 < 0.4 < whole["padding"] / whole["positions"]


def test_batches_of_similar_lengths_continue_exactly_on_any_number_of_hosts(texts):
    stream = of_similar_lengths(texts)
    for _ in range(17):
        next(stream)
    state = stream.state()
    expected = [next(stream) for _ in range(10)]  # into the next epoch
    parts = [of_similar_lengths(texts, own_rows=rows) for rows in np.split(np.arange(24), 2)]
    for part in parts:
        part.restore(state)
    for batch in expected:
        halves = [next(part) for part in parts]
        assert all(half["padding"] == batch["padding"] for half in halves)
        for name in ("encoder_input_tokens", "rows"):
            joined = np.concatenate([half[name] for half in halves])
            np.testing.assert_array_equal(joined, batch[name])
    with pytest.raises(ValueError, match="batch_size was 24, now 12"):
        of_similar_lengths(texts, size=12).restore(state)
    one_length = of_one_length(texts)
    for begun, other in ((stream, one_length), (one_length, stream)):
        with pytest.raises(ValueError, match=r"lengths \(LENGTH_BUCKETS, or None for one\) was"):
            other.restore(begun.state())


def in_parts(task, size=24, parts=4, shards=1, **options):
    sizes = PartSizes(parts, shards)
    return pipeline.training_batches(
        task, "train", size, 128, 4, 3, buckets="parts", part_sizes=sizes, **options
    )


def test_a_batch_in_parts_has_the_rows_of_the_same_batch_without(texts):
    plain, stream, positions, padding = of_one_length(texts), in_parts(texts, shards=3), 0, 0
    profiles = set()
    for _ in range(30):
        want, got = next(plain), next(stream)
        for name in ("encoder_input_tokens", "decoder_target_tokens", "example_weights", "rows"):
            np.testing.assert_array_equal(got[name], want[name][got["places"]])
        assert sorted(got["places"]) == list(range(24))
        parts, tokens = got["input_parts"], got["encoder_input_tokens"].reshape(3, 4, 2, 128)
        computed = 24 * 128
        if parts is not None:
            assert parts.shards == 3 and not any(
                tokens[:, k, :, length:].any() for k, length in enumerate(parts.lengths)
            )
            computed = 6 * sum(parts.lengths)
        profiles.add(parts)
        assert got["positions"] == computed + 24 * 4
        assert got["positions"] - got["padding"] == want["positions"] - want["padding"]
        positions, padding = positions + got["positions"], padding + got["padding"]
    assert 2 <= len(profiles) <= 4
    assert padding / positions < 0.3 < 0.4 < want["padding"] / want["positions"]


def test_hosts_have_their_own_rows_of_the_same_parts(texts):
    whole = [next(in_parts(texts, shards=2))]
    halves = [next(in_parts(texts, shards=2, own_rows=rows)) for rows in np.split(np.arange(24), 2)]
    for name in ("encoder_input_tokens", "rows", "places"):
        joined = np.concatenate([half[name] for half in halves])
        np.testing.assert_array_equal(joined, whole[0][name])
    assert {half["input_parts"] for half in halves} == {whole[0]["input_parts"]}
    assert {half["padding"] for half in halves} == {whole[0]["padding"]}


def test_a_run_continues_in_other_parts_or_in_none(texts):
    begun = in_parts(texts)
    for _ in range(25):  # into the next epoch
        next(begun)
    state, expected = begun.state(), next(begun)
    others = (of_one_length(texts), in_parts(texts, parts=2, shards=4), in_parts(texts, parts=1))
    for other in others:
        other.restore(state)
        assert sorted(next(other)["rows"]) == sorted(expected["rows"])
    assert begun.state() == others[0].state()


def test_rows_that_fill_their_length_are_not_laid_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(8 * (json.dumps({"input": "a" * 40, "target": "b"}) + "\n"))
    task = tasks.local_text({"train": str(path)}, vocabulary=BYTES)
    stream = pipeline.training_batches(task, "train", 4, 41, 4, 0, buckets="parts")
    assert not {"places", "input_parts"} & set(next(stream))
    odd = pipeline.training_batches(task, "train", 2, 41, 4, 0, buckets="parts")
    assert next(odd)["encoder_input_tokens"].shape == (2, 41)  # of rows that four do not divide

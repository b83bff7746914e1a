"""A vocabulary without a file has T5's size and special ids, and exists only where it may."""

import numpy as np
import pytest

from gkd.errors import MissingFile
from gkd.vocabularies import vocabularies
from gkd.vocabularies.placeholder import placeholders


@pytest.fixture
def nothing_named(monkeypatch):
    monkeypatch.delenv(vocabularies.ENVIRONMENT, raising=False)


def test_it_may_generate_the_ids_of_t5s_own_vocabulary(shared, nothing_named):
    own = vocabularies.t5(str(shared / "data/t5_vocab/spiece.model"))
    with placeholders():
        stand_in = vocabularies.t5()
    assert (stand_in.vocab_size, stand_in.pad_id, stand_in.eos_id, stand_in.unk_id) == (
        own.vocab_size, own.pad_id, own.eos_id, own.unk_id,
    )  # fmt: skip
    masks = [vocabularies.valid_ids(one, 32128) for one in (own, stand_in)]
    np.testing.assert_array_equal(*masks)


def test_a_text_of_the_settings_has_an_id_per_word(nothing_named):
    """A template in a setting: a plan failed where it was encoded."""
    with placeholders():
        stand_in = vocabularies.t5()
    assert vocabularies.encode_texts(stand_in, [" Reference solution: ", " "]) == [[3, 3], []]


def test_only_plans_do_without_a_file(nothing_named):
    with placeholders():
        pass
    with pytest.raises(MissingFile, match="GKD_VOCABULARY"):
        vocabularies.t5()


def test_a_file_that_is_named_is_read(monkeypatch):
    monkeypatch.setenv(vocabularies.ENVIRONMENT, "/nowhere/spiece.model")
    with placeholders(), pytest.raises(MissingFile, match="/nowhere/spiece.model"):
        vocabularies.t5()

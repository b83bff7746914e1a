"""The description of a vocabulary: its size and a hash of its pieces."""

from gkd.runs import checkpoint_vocabulary
from gkd.vocabularies import vocabularies


def test_a_vocabulary_is_described_by_its_size_and_pieces():
    found = checkpoint_vocabulary.describe_vocabulary(vocabularies.byte_level())
    assert (found["size"], found["bytes"]) == (vocabularies.byte_level().vocab_size, True)
    other = checkpoint_vocabulary.describe_vocabulary(vocabularies.arithmetic())
    assert other["size"] == 51 and not other["bytes"] and other["sha256"] != found["sha256"]

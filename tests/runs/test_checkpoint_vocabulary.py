"""The description of a vocabulary, the copies of its files, and a model's special ids."""

import dataclasses

import pytest

from gkd.models.interface import SpecialIds
from gkd.models.t5 import T5Config
from gkd.runs import checkpoint_vocabulary
from gkd.vocabularies import vocabularies
from gkd.vocabularies.placeholder import placeholder, placeholders
from tests.vocabularies.tokenizer_folders import CHATML, byte_bpe


def test_a_vocabulary_is_described_by_its_size_and_pieces():
    found = checkpoint_vocabulary.describe_vocabulary(vocabularies.byte_level())
    assert (found["size"], found["bytes"]) == (vocabularies.byte_level().vocab_size, True)
    other = checkpoint_vocabulary.describe_vocabulary(vocabularies.arithmetic())
    assert other["size"] == 51 and not other["bytes"] and other["sha256"] != found["sha256"]


def test_a_run_keeps_all_files_that_its_prompts_and_ends_depend_on(tmp_path):
    folder = byte_bpe(tmp_path / "model", ends=[256, 258], eos_token="<|im_end|>")
    (tmp_path / "model/chat_template.jinja").write_text(CHATML)
    vocabulary = vocabularies.from_folder(folder)
    run = tmp_path / "run"
    run.mkdir()
    checkpoint_vocabulary.save_vocabulary(vocabulary, run)
    copied = vocabularies.from_folder(str(run))
    assert (copied.end_ids, copied.files.chat_template.text) == ((258, 256), CHATML)
    assert vocabularies.same_vocabulary(copied, vocabulary) is None


@dataclasses.dataclass(frozen=True)
class Bound:
    """An architecture that takes any special ids."""

    ids: dict

    def with_special_ids(self, **ids):
        return Bound(ids)


def test_a_model_takes_its_special_ids_from_the_vocabulary_or_has_them(tmp_path):
    bind = checkpoint_vocabulary.with_special_ids
    bpe = vocabularies.from_folder(byte_bpe(tmp_path / "model", ends=[258, 256]))
    assert bind("STUDENT", Bound({}), bpe).ids == {"padding": -1, "end": 256, "ends": (256, 258)}
    config = T5Config()
    assert bind("STUDENT", config, vocabularies.byte_level()) is config
    with placeholders():
        assert bind("STUDENT", Bound({}), placeholder()) == Bound({})
    with pytest.raises(ValueError, match="STUDENT has padding id 0, but .*tokenizer.json -1: T5"):
        bind("STUDENT", config, bpe)
    assert config.special_ids == SpecialIds()

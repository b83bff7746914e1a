"""Pointers of Git LFS, as the specification of Git LFS writes them."""

import pytest

from gkd.files.lfs_pointers import refuse_lfs_pointer
from gkd.vocabularies.tokenizer_files import read_tokenizer

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)


def test_a_pointer_is_refused_and_other_files_are_not(tmp_path):
    file = tmp_path / "model.safetensors"
    for content in ("", "version 2", "x" * 4096, POINTER + "x" * 4096):
        file.write_text(content)
        refuse_lfs_pointer(file)
    file.write_text(POINTER)
    with pytest.raises(ValueError, match="Git LFS pointer, not the file itself: run `git"):
        refuse_lfs_pointer(file)


def test_json_and_tokenizers_that_are_pointers_are_named_as_such(tmp_path):
    for name in ("tokenizer.json", "spiece.model"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text(POINTER)
        with pytest.raises(ValueError, match=f"{name} is a Git LFS pointer"):
            read_tokenizer(folder)

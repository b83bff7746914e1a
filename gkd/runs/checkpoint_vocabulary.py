"""Describes, saves and loads the vocabulary of a checkpoint, and compares it with a task's."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

from gkd.checkpoints.tensors import Checkpoint
from gkd.errors import InvalidValue
from gkd.files.atomic_files import replace_file
from gkd.parallel import processes
from gkd.vocabularies import vocabularies
from gkd.vocabularies.placeholder import PlaceholderVocabulary
from gkd.vocabularies.token_rows import check_special_ids, special_ids
from gkd.vocabularies.tokenizer_files import GENERATION_FILE, TOKENIZER_FILES, VOCABULARY_FILE

_LOG = logging.getLogger(__name__)


def describe_vocabulary(vocabulary: Any) -> dict[str, Any]:
    """Describes a vocabulary by size and fingerprint, which are equal only if all pieces are.

    Args:
      vocabulary: a seqio vocabulary.
    """
    return {
        "size": int(vocabulary.vocab_size),
        "sha256": vocabularies.fingerprint(vocabulary),
        "bytes": vocabularies.is_byte_level(vocabulary),
    }


def save_vocabulary(vocabulary: Any, directory: pathlib.Path) -> None:
    """Copies the files of a tokenizer into a run directory.

    Args:
      vocabulary: a seqio vocabulary.
      directory: path of the run directory.
    """
    folder, pieces = vocabularies.tokenizer_folder(vocabulary), None
    if folder is None:
        pieces = vocabularies.sentencepiece_file(vocabulary)
    names = (*TOKENIZER_FILES, GENERATION_FILE)  # the latter has the ids that end outputs
    sources = {name: folder / name for name in names} if folder is not None else {}
    if pieces is not None:
        sources = {VOCABULARY_FILE: pathlib.Path(pieces)}
    for name, source in sources.items():
        target = directory / name
        if not processes.is_primary_process() or not source.exists():
            continue
        content = source.read_bytes()
        if not target.is_file() or target.read_bytes() != content:  # absent, or damaged
            replace_file(target, content)


def vocabulary_of(opened: Checkpoint, given: str | None = None) -> Any:
    """Chooses and loads the vocabulary for a checkpoint.

    Args:
      opened: the checkpoint.
      given: path of a sentencepiece model or a checkpoint's folder, or 'bytes'; None takes the
        checkpoint's own, or else that of the environment variable GKD_VOCABULARY with a warning.

    Returns:
      A seqio vocabulary.

    Raises:
      FileNotFoundError: none is known, or the file does not exist.
      ValueError: the vocabulary has more ids than the model, or the tokenizer is unsupported.
    """
    if given == "bytes":
        vocabulary = vocabularies.byte_level()
    elif given is not None:
        vocabulary = vocabularies.t5(given, _sentinels(opened))
    else:
        vocabulary = own_vocabulary(opened)
        if vocabulary is None:
            vocabulary = vocabularies.t5(None, _sentinels(opened))
            _LOG.warning(
                "%s names no vocabulary: the one of %s is used without a check",
                opened.path, vocabularies.ENVIRONMENT,
            )  # fmt: skip
    vocabularies.valid_ids(vocabulary, opened.config.vocab_size)  # refuses too many ids
    with_special_ids(str(opened.path), opened.config, vocabulary)  # refuses another family's
    return vocabulary


def with_special_ids(name: str, config: Any, vocabulary: Any) -> Any:
    """Binds an architecture to the special ids of a vocabulary, or checks that it has them.

    Args:
      name: name of the model, for a message.
      config: the architecture; one with a method `with_special_ids(padding, end, ends)` takes any
        ids, another (T5) has its own.
      vocabulary: a seqio vocabulary.

    Returns:
      The architecture.

    Raises:
      InvalidValue: its ids are fixed and not the vocabulary's.
    """
    if isinstance(vocabulary, PlaceholderVocabulary):
        return config
    if hasattr(config, "with_special_ids"):
        return config.with_special_ids(**special_ids(vocabulary))
    check_special_ids(name, config.special_ids, vocabulary)
    return config


def own_vocabulary(opened: Checkpoint) -> Any:
    """Loads the vocabulary that a checkpoint's own files describe.

    Args:
      opened: the checkpoint.

    Returns:
      A seqio vocabulary; None if the files describe none.

    Raises:
      ValueError: the tokenizer is damaged or unsupported.
    """
    files = opened.tokenizer
    if files is None or files.is_empty:
        return vocabularies.byte_level() if opened.bytes_vocabulary else None
    if opened.bytes_vocabulary and not files.is_bytes:
        return vocabularies.byte_level()
    return vocabularies.from_files(files, _sentinels(opened))


def _sentinels(opened: Checkpoint) -> int:
    """Number of ids after those of the sentencepiece: as the run recorded, else by family."""
    described = (opened.description or {}).get("vocabulary")
    alone = opened.tokenizer is not None and opened.tokenizer.names == (VOCABULARY_FILE,)
    if described and opened.vocabulary is not None and alone:
        pieces = vocabularies.sentencepiece(str(opened.vocabulary)).vocab_size
        return described["size"] - pieces
    return opened.sentinels


def check_vocabulary(role: str, opened: Checkpoint, task: Any) -> None:
    """Compares a checkpoint's vocabulary with the task's, piece by piece if both are known.

    Args:
      role: 'STUDENT' or 'TEACHER', for messages.
      opened: the checkpoint.
      task: the task.

    Raises:
      ValueError: they differ, or the tokenizer is unsupported.
    """
    difference = vocabulary_difference(role, opened, task.vocabulary)
    if difference:
        raise InvalidValue(
            f"{role} {opened.path} has another vocabulary than task {task.name}: {difference}; "
            "distillation needs one vocabulary, use the task's with which that model was trained; "
            "with models of different families, train on the teacher's outputs as texts "
            "(configs/methods/seqkd.gin)"
        )


def vocabulary_difference(role: str, opened: Checkpoint, wanted: Any) -> str | None:
    """Compares a checkpoint's vocabulary with another, piece by piece if both are known.

    Args:
      role: name of the checkpoint's setting, for a warning.
      opened: the checkpoint.
      wanted: a seqio vocabulary.

    Returns:
      The difference in words; None if there is none, or the checkpoint's vocabulary is unknown.

    Raises:
      ValueError: the tokenizer is unsupported.
    """
    described = (opened.description or {}).get("vocabulary")
    here = describe_vocabulary(wanted)
    if described and (described["size"], described["sha256"]) == (here["size"], here["sha256"]):
        return None
    own = own_vocabulary(opened)
    if own is None and described and here["bytes"]:
        return "one is bytes, the other pieces"
    if own is not None:
        are_bytes = [vocabularies.is_byte_level(own), here["bytes"]]
        if all(are_bytes):
            return None
        folders = [vocabularies.tokenizer_folder(each) is not None for each in (own, wanted)]
        if any(are_bytes) and not any(folders):
            return "one is bytes, the other pieces"
        if vocabularies.sentencepiece_file(own) is not None:  # sentinels are not compared
            own = vocabularies.sentencepiece(str(opened.vocabulary), wanted.extra_ids)
        difference = vocabularies.same_vocabulary(own, wanted)
        if difference and folders[0]:
            return f"{difference} (set {vocabularies.ENVIRONMENT} to {opened.tokenizer.folder})"
        if difference or not described:
            return difference
    if described:
        return (
            f"the model's has {described['size']} ids (sha256 {described['sha256'][:12]}), "
            f"the task's {here['size']} ({here['sha256'][:12]})"
        )
    _LOG.warning("%s %s names no vocabulary: the task's is used without a check", role, opened.path)
    return None

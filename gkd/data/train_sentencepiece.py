"""Trains a vocabulary: python -m gkd.data.train_sentencepiece OUTPUT SIZE FIELDS FILE [FILE ...].

FIELDS are the names of the fields to train on, separated by commas; a FILE is a data file of any
format that tasks read. Pad, eos and unk have T5's ids 0, 1 and 2. The same files give the
same model.
"""

from __future__ import annotations

import io
import pathlib
import sys
from collections.abc import Sequence

import sentencepiece

from gkd.data import sources
from gkd.errors import InvalidValue
from gkd.files.atomic_files import replace_file
from gkd.tables.rows import read_rows


def trained_sentencepiece(files: Sequence[str], fields: Sequence[str], size: int) -> bytes:
    """Trains a unigram model.

    Args:
      files: paths of data files; relative ones start at GKD_DATA, as in tasks.
      fields: names of the fields of every row to train on.
      size: number of pieces, including pad, eos and unk.

    Returns:
      The serialised model.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a row lacks a field, or the text has too few different pieces for the size.

    Source: Kudo 2018 (arXiv 1804.10959), by the sentencepiece library.
    """
    rows = [row for path in files for row in read_rows(sources.resolved(path), fields)]
    text = (row[field] for row in rows for field in fields)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=text,
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            character_coverage=0.9995,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        names = ", ".join(files)
        raise InvalidValue(f"{size} pieces cannot be learnt from {names}: {error}") from error
    return model.getvalue()


def main(arguments: Sequence[str]) -> None:
    """Trains a model and writes it.

    Args:
      arguments: OUTPUT, SIZE, FIELDS and one or more FILEs.
    """
    if len(arguments) < 4:
        raise SystemExit(f"gkd: error: {len(arguments)} arguments\n{__doc__}")
    output, size, fields, *files = arguments
    model = trained_sentencepiece(files, fields.split(","), int(size))
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, model)
    print(f"{path}: {size} pieces, {len(model)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])

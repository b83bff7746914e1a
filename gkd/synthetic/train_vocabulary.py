"""Trains the arithmetic task's vocabulary: python -m gkd.synthetic.train_vocabulary [PATH].

Every word of the problems is one piece, and every digit is one piece with and one without a space
before it. Every run gives the same file.
"""

from __future__ import annotations

import io
import pathlib
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from gkd.files.atomic_files import replace_file
from gkd.synthetic import arithmetic
from gkd.vocabularies import vocabularies

PATH = pathlib.Path(vocabularies.__file__).with_name("arithmetic.model")
_SPACE = "\u2581"  # sentencepiece's mark for a space
# One rule (no-break space to space): without rules, TensorFlow logs a line at every load.
_NORMALIZATION = "A0\t20\n"


def trained_vocabulary() -> bytes:
    """Trains the model and returns it serialised: pad 0, eos 1, unk 2, no bos."""
    pieces = [_SPACE + word for word in arithmetic.words()]
    pieces += [",", "."]
    pieces += [_SPACE + digit for digit in "0123456789"] + list("0123456789")
    text = [
        sentence
        for solution in arithmetic.SOLUTIONS
        for problem in arithmetic.problems("train", 200, digits=2, solution=solution)
        for sentence in (problem.input, problem.target)
    ]
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as rules:
        rules.write(_NORMALIZATION)
        rules.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text),
            model_writer=model,
            model_type="bpe",
            vocab_size=3 + len(pieces),
            user_defined_symbols=pieces,
            normalization_rule_tsv=rules.name,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    proto.normalizer_spec.ClearField("normalization_rule_tsv")  # a temporary file's name
    return proto.SerializeToString(deterministic=True)


def main() -> None:
    """Writes the model to the path on the command line, by default into the package."""
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else PATH
    model = trained_vocabulary()
    replace_file(path, model)
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    print(f"{path}: {size} pieces, {len(model)} bytes")


if __name__ == "__main__":
    main()

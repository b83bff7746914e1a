"""An evaluation of a task whose options are scored."""

import types

import numpy as np

from gkd.data import pipeline
from gkd.data.task_spec import TaskSpec
from gkd.evaluate.evaluation import Evaluation
from gkd.metrics import metrics
from gkd.vocabularies import vocabularies
from tests.infer.inference import CONFIG, USABLE, bytes_of

QUESTIONS = (  # input, options, right one
    ("a: Is it so?", ("A", "B"), "B"),
    ("a: Which of the three do you mean?", ("(A)", "(B)", "(C)"), "(A)"),
    ("b: Is it true?", ("yes", "no", "perhaps not"), "no"),
    ("b: And this one, with a longer question than the others?", ("B", "A"), "A"),
    ("b: Alike?", ("C", "C"), "C"),  # of equals the first
) * 2
LENGTHS = (60, 16)  # of prompts and references in tokens


def padded(texts, length):
    rows = np.zeros((16, length), np.int32)
    for row, text in zip(rows, texts, strict=False):
        ids = bytes_of(text)
        row[: len(ids)] = ids
    return rows


def option_evaluation(mesh):
    inputs, _, targets = zip(*QUESTIONS, strict=True)
    prompts, references = (
        padded(texts, length) for texts, length in zip((inputs, targets), LENGTHS, strict=True)
    )
    weights = (np.arange(16) < len(QUESTIONS)).astype(np.float32)
    names = ("encoder_input_tokens", "decoder_target_tokens", "example_weights")
    batches = tuple(
        {
            name: array[i : i + 8]
            for name, array in zip(names, (prompts, references, weights), strict=True)
        }
        for i in (0, 8)
    )
    options = {text: (choices, choices.index(right)) for text, choices, right in QUESTIONS}
    seqio_task = types.SimpleNamespace(
        metric_fns=[metrics.exact_match], output_features=("inputs", "targets")
    )
    task = TaskSpec(
        "quiz", vocabularies.byte_level(), seqio_task,
        lambda row: row, choices=lambda text, target: options[text],
        group_of=lambda text, target: text[0],
    )  # fmt: skip
    examples = pipeline.EvaluationSet(batches, inputs, targets, 0, 0, 0)
    valid = (np.arange(CONFIG.vocab_size) > 0) & (np.arange(CONFIG.vocab_size) < USABLE)
    return Evaluation(task, mesh, examples, 8, valid)

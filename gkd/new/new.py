"""The verb `new`: writes a task file and run files, and prints the commands that follow."""

from __future__ import annotations

import contextlib
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from gkd.configuration import setting_values
from gkd.configuration.gin_files import GinReader, display_name, resolve_gin_file
from gkd.configuration.verb_settings import NEW
from gkd.errors import ExistingFile, InvalidFile, InvalidValue, NotAFolder
from gkd.files.atomic_files import replace_file
from gkd.files.hub import parse_hub_name
from gkd.new import data_facts
from gkd.new.run_files import TASK_FILE, Data, Models, run_files, task_file
from gkd.tables.columns import held_delimiters
from gkd.tables.delimited import TsvFormat

_QUESTIONS = {
    "train": "data file (.jsonl, .csv, .tsv, .parquet, …)",
    "input_field": "column of the inputs",
    "target_field": "column of the targets",
    "teacher": "teacher: a checkpoint's folder, or OWNER/NAME of the Hugging Face Hub",
    "student": "student: the same, or a model file such as configs/models/cpu_student.gin",
}
_DEFAULT_LENGTHS = (256, 64)
_LARGEST_VALIDATION = 500  # rows that are held out
_COMPARED_TARGETS = 200  # that decide whether the metric suits them


def new(
    directory: str,
    train: str | None = None,
    validation: str | None = None,
    input_field: str | None = None,
    target_field: str | None = None,
    teacher: str | None = None,
    student: str | None = None,
    prefix: str = "",
    metric: str = "rouge2",
    steps: int = 2000,
    delimiter: str | None = None,
    tuned_teacher: bool = False,
) -> None:
    """Writes the run files of a distillation on one's own data into a folder.

    On a terminal, missing options are asked for.

    Args:
      directory: path of the folder.
      train: data file of the training rows, relative to GKD_DATA as in task files.
      validation: data file of the validation rows; None holds out the last rows of `train`.
      input_field, target_field: columns of the data file.
      teacher: a checkpoint.
      student: a checkpoint, or a model file (NAME.gin) for a randomly initialised student.
      prefix: text before every input.
      metric: metric of the best checkpoint: 'rouge2', 'bleu' or 'exact_match'.
      steps: length of each run.
      delimiter: between cells of CSV and TSV files; None is by suffix.
      tuned_teacher: use the teacher as it is, without fine-tuning.

    Raises:
      FileNotFoundError: there is no such data file, checkpoint or model file.
      FileExistsError: the folder holds one of the files already.
      ValueError: an option is missing, or the data file does not fit.
    """
    setting_values.check_call(NEW, locals())
    folder = pathlib.Path(directory)
    _check_free(folder)
    form = TsvFormat(delimiter=delimiter)
    train = train or _ask("train")
    names = data_facts.columns(train, form)
    _check_columns(train, names)
    print(f"{train}: columns {', '.join(names)}")
    input_field = input_field or _ask("input_field", names)
    target_field = target_field or _ask("target_field", names)
    teacher, student = teacher or _ask("teacher"), student or _ask("student")
    models = Models(_checked(teacher, "teacher"), _checked_student(student), tuned_teacher)
    pairs = data_facts.read_pairs(train, input_field, target_field, form)
    _check_metric(metric, pairs.targets)
    files = _splits(train, validation, pairs.rows)
    if validation is not None:
        data_facts.read_pairs(validation, input_field, target_field, form)
    vocabulary, reason = _checked_vocabulary(models)
    lengths, remarks = _lengths(vocabulary, reason, pairs, prefix)
    data = Data(
        files, input_field, target_field, prefix, delimiter, models.teacher, lengths, remarks,
        metric,
    )  # fmt: skip
    texts = {TASK_FILE: task_file(data), **run_files(directory.rstrip("/"), models, steps)}
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        replace_file(folder / name, text)
    print(f"written to {directory}: {', '.join(texts)}\n")
    print(_next_commands(directory.rstrip("/"), [name for name in texts if name != TASK_FILE]))


def _check_free(folder: pathlib.Path) -> None:
    """Refuses a folder that holds gin files: nothing is overwritten."""
    if folder.exists() and not folder.is_dir():
        raise NotAFolder(f"{folder} is a file: name a new folder")
    existing = sorted(path.name for path in folder.glob("*.gin"))
    if existing:
        raise ExistingFile(f"{folder} already holds {', '.join(existing)}: name a new folder")


def _check_columns(train: str, names: list[str]) -> None:
    """Refuses an only column whose name holds a delimiter, before its parts are asked for."""
    if delimiters := held_delimiters(names):
        raise InvalidFile(
            f"{train} has one column, {names[0]!r}: separate its cells by --delimiter="
            f"{delimiters[0]!r}"
        )


def _check_metric(metric: str, targets: Sequence[str]) -> None:
    """Refuses ROUGE-2 for targets of one word, which have no pair of words to compare."""
    if metric != "rouge2":
        return
    from gkd.metrics import metrics  # imports packages, which takes a second

    compared = targets[:_COMPARED_TARGETS]
    score = metrics.rouge(compared, compared)["rouge2"]
    if score < 50:
        raise InvalidValue(
            f"--metric is 'rouge2', which compares pairs of words, but most targets have one word "
            f"(compared with themselves they score {score:.0f} of 100): use --metric=exact_match"
        )


def _ask(name: str, choices: list[str] | None = None) -> str:
    """Asks for an option on a terminal.

    Raises:
      ValueError: standard input is no terminal, or the answer is empty.
    """
    listed = "" if choices is None else f" ({', '.join(choices)})"
    answer = ""
    if sys.stdin is not None and sys.stdin.isatty():
        with contextlib.suppress(EOFError):  # Ctrl-D
            answer = input(f"{_QUESTIONS[name]}{listed}: ").strip()
    if not answer:
        raise InvalidValue(f"--{name} is missing: {_QUESTIONS[name]}{listed}")
    return answer


def _checked(checkpoint: str, option: str) -> str:
    """Refuses a path that does not exist, before it is written into files."""
    if not pathlib.Path(checkpoint).exists() and parse_hub_name(checkpoint) is None:
        raise InvalidValue(
            f"--{option} is {checkpoint!r}: there is no such folder, and it is no name of a model "
            "on the Hugging Face Hub (OWNER/NAME)"
        )
    return checkpoint


def _checked_student(student: str) -> str:
    """A checkpoint, or the model file as run files of another folder can include it."""
    if not student.endswith(".gin"):
        return _checked(student, "student")
    path, reader = resolve_gin_file(student, "--student"), GinReader()
    reader.read_file(path)
    if reader.value_of("STUDENT_MODEL") is None:
        raise InvalidValue(
            f"--student is {student!r}, which sets no STUDENT_MODEL: name a model file such as "
            "configs/models/cpu_student.gin"
        )
    return display_name(path)


def _splits(train: str, validation: str | None, rows: int) -> dict[str, str]:
    """The file of each split; without validation rows, the last training rows are held out."""
    if validation is not None:
        print(f"{rows} training rows")
        return {"train": train, "validation": validation}
    held = min(_LARGEST_VALIDATION, rows // 10)
    if not held:
        raise InvalidValue(
            f"{train} has {rows} rows, too few to hold out a tenth: name a file with --validation"
        )
    print(f"{rows} rows: the last {held} are held out for validation")
    return {"train": f"{train}[:-{held}]", "validation": f"{train}[-{held}:]"}


def _checked_vocabulary(models: Models) -> tuple[Any, str]:
    """The teacher's vocabulary, or None and why; refuses local checkpoints that do not fit it.

    Models of the Hub are not downloaded for it: they are compared when they are trained.
    """
    from gkd.checkpoints import formats  # imports JAX, which takes seconds
    from gkd.runs.checkpoint_vocabulary import vocabulary_difference

    named = {"teacher": models.teacher, "student": models.student}
    local = {
        option: formats.open_checkpoint(path)
        for option, path in named.items()
        if not path.endswith(".gin") and parse_hub_name(path) is None
    }
    vocabulary, reason = data_facts.load_vocabulary(models.teacher)
    for option, opened in local.items() if vocabulary is not None else ():
        rows, ids = opened.config.vocab_size, vocabulary.vocab_size
        difference = (
            f"its table has {rows} rows, the tokenizer {ids} ids"
            if rows < ids
            else vocabulary_difference(f"--{option}", opened, vocabulary)
        )
        if difference:
            raise InvalidValue(
                f"--{option} is {named[option]!r}, which does not fit the teacher's tokenizer: "
                f"{difference}"
            )
    return vocabulary, reason


def _lengths(vocabulary: Any, reason: str, pairs: data_facts.Pairs, prefix: str):
    """INPUT_LENGTH and TARGET_LENGTH with their reasons, measured if the vocabulary is there."""
    if vocabulary is None:
        print(f"lengths are not measured, set INPUT_LENGTH and TARGET_LENGTH: {reason}")
        return _DEFAULT_LENGTHS, ("in tokens, not measured",) * 2
    limits, remarks = [], []
    groups = {"inputs": [prefix + text for text in pairs.inputs], "targets": pairs.targets}
    for name, texts in groups.items():
        found = data_facts.measure(vocabulary, texts)
        limits.append(found.limit)
        remarks.append(
            f"in tokens: median {found.median}, {data_facts.PERCENTILE}% at most "
            f"{found.percentile}, longest {found.longest}"
        )
        print(f"{name} {remarks[-1]}; limit {found.limit}")
    return (limits[0], limits[1]), (remarks[0], remarks[1])


def _next_commands(folder: str, files: list[str]) -> str:
    """The commands to type next."""
    paths = [shlex.quote(f"{folder}/{name}") for name in files]
    last, gkd = paths[-1], shlex.quote(f"{folder}/gkd")
    commands = [
        f"train --gin_file={last} --help  # all settings with their values",
        *(f"train --gin_file={path}" for path in paths),
        f"evaluate --gin_file={last}",
        f"convert {gkd} {shlex.quote(f'{folder}/for_transformers')}",
    ]
    return "\n".join(["next:", *(f"  python -m gkd {command}" for command in commands)])

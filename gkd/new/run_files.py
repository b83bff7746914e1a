"""Renders the run files of a distillation: the task, teacher, SFT, supervised KD and GKD."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

TASK_FILE = "task.gin"
_METRICS = {"rouge2": "", "bleu": "metrics.bleu", "exact_match": "metrics.exact_match"}
METRICS = tuple(_METRICS)
# Learning rates for Adafactor, which scales them by each parameter's root mean square.
_PRETRAINED_RATE, _RANDOM_RATE = 1e-3, 1e-2


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a task file.

    Attributes:
      files: path of the file of each split.
      input_field, target_field: fields of a row.
      prefix: text before every input.
      delimiter: between cells of CSV and TSV files; None is by suffix.
      vocabulary: folder or name of the checkpoint whose tokenizer is used.
      lengths: INPUT_LENGTH and TARGET_LENGTH.
      remarks: comments beside the two.
      metric: one of `METRICS`.
    """

    files: Mapping[str, str]
    input_field: str
    target_field: str
    prefix: str
    delimiter: str | None
    vocabulary: str
    lengths: tuple[int, int]
    remarks: tuple[str, str]
    metric: str


def task_file(data: Data) -> str:
    """Renders the task file."""
    imports = ["from gkd.vocabularies import vocabularies"]
    function = _METRICS[data.metric]
    if function:
        imports.insert(0, "from gkd.data import tasks\nfrom gkd.metrics import metrics")
    lines = [
        f"# {TASK_FILE}: pairs of texts, their vocabulary and their lengths.",
        "from __gin__ import dynamic_registration",
        "",
        "include 'configs/tasks/local_text.gin'",
        "",
        *imports,
        "",
        f"FILES = {dict(data.files)!r}",
        f"INPUT_FIELD = {data.input_field!r}",
        f"TARGET_FIELD = {data.target_field!r}",
        f"PREFIX = {data.prefix!r}  # before every input",
        *([] if data.delimiter is None else [f"DELIMITER = {data.delimiter!r}"]),
        f"vocabularies.t5.path = {data.vocabulary!r}  # of the teacher and the student",
        f"INPUT_LENGTH = {data.lengths[0]}  # {data.remarks[0]}",
        f"TARGET_LENGTH = {data.lengths[1]}  # {data.remarks[1]}",
        f"BEST_METRIC = {data.metric!r}  # decides which checkpoint is best",
        *([f"tasks.local_text.metric_fns = [@{function}]"] if function else []),
    ]
    return "\n".join(lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Models:
    """The models of a distillation.

    Attributes:
      teacher: a checkpoint.
      student: a checkpoint; or a model file, NAME.gin, for a randomly initialised student.
      tuned_teacher: the teacher is used as it is, without fine-tuning.
    """

    teacher: str
    student: str
    tuned_teacher: bool = False

    @property
    def random_student(self) -> bool:
        """True for a model file."""
        return self.student.endswith(".gin")


def run_files(folder: str, models: Models, steps: int) -> dict[str, str]:
    """Renders the run files.

    Args:
      folder: path of the folder that holds them, where the runs are kept too.
      models: teacher and student.
      steps: length of each run.

    Returns:
      Texts by file name, in the order of the runs.
    """
    rate = _RANDOM_RATE if models.random_student else _PRETRAINED_RATE
    start = [] if models.random_student else [("STUDENT", models.student)]
    architecture = [models.student] if models.random_student else []
    teacher = models.teacher if models.tuned_teacher else f"{folder}/teacher"
    pair = [("STUDENT", f"{folder}/start"), ("TEACHER", teacher)]
    files = {}
    if not models.tuned_teacher:
        files["teacher.gin"] = _run_file(
            "teacher.gin: fine-tunes the teacher on the pairs (SFT).", f"{folder}/teacher", "sft",
            [("STUDENT", models.teacher)], _PRETRAINED_RATE, steps,
        )  # fmt: skip
    files["start.gin"] = _run_file(
        "start.gin: fine-tunes the student on the pairs: the SFT initialisation of the next two.",
        f"{folder}/start", "sft", start, rate, steps, architecture,
    )  # fmt: skip
    files["supervised_kd.gin"] = _run_file(
        "supervised_kd.gin: supervised distillation (λ=0): the teacher scores the pairs' targets.",
        f"{folder}/supervised_kd", "supervised_kd", pair, rate, steps,
    )  # fmt: skip
    files["gkd.gin"] = _run_file(
        "gkd.gin: on-policy distillation (λ=1): the teacher scores the student's own samples.",
        f"{folder}/gkd", "gkd", pair, rate, steps,
    )  # fmt: skip
    return files


def _run_file(
    title: str,
    model_dir: str,
    method: str,
    checkpoints: Sequence[tuple[str, str]],
    rate: float,
    steps: int,
    includes: Sequence[str] = (),
) -> str:
    names = [TASK_FILE, f"configs/methods/{method}.gin", *includes]
    every = -(-steps // 3)  # rounded up: the last of three evaluations is the last step
    lines = [
        f"# {title}",
        *(f"include {name!r}" for name in names),
        "",
        f"MODEL_DIR = {model_dir!r}",
        *(f"{macro} = {checkpoint!r}" for macro, checkpoint in checkpoints),
        f"LEARNING_RATE = {rate}",
        "BATCH_SIZE = 16",
        f"TRAIN_STEPS = {steps}",
        f"EVALUATE_EVERY = {every}",
        f"CHECKPOINT_EVERY = {every}",
    ]
    return "\n".join(lines) + "\n"

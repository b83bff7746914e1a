"""The verb `evaluate`: measures a checkpoint on a task, beside its teacher if there is one."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import rich.console

from gkd.data import metrics
from gkd.data.tasks import TaskSpec
from gkd.jobs import evaluation as evaluations
from gkd.jobs import models
from gkd.jobs.metrics_log import markdown_table
from gkd.jobs.run_directory import environment, git_state
from gkd.jobs.training_loop import write_json
from gkd.parallel import mesh as meshes


def evaluate(
    checkpoint: str,
    task: TaskSpec,
    input_length: int,
    target_length: int,
    batch_size: int,
    evaluation_batch_size: int | None = None,
    teacher: str | None = None,
    step: int | str | None = "best",
    student_dtype: str | None = None,
    teacher_dtype: str | None = None,
    teacher_step: int | str | None = None,
    split: str = "validation",
    max_examples: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    sample_rows: int = 4,
    output: str | None = None,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
) -> dict[str, Any]:
    """Generates with a checkpoint on a split, prints its metrics and samples, writes them as JSON.

    Args:
      checkpoint: a run directory, one step folder, a Hugging Face directory, a T5X checkpoint.
      task: what to measure on.
      input_length, target_length: in tokens.
      batch_size: rows of a batch.
      evaluation_batch_size: the same, where it differs from training's.
      teacher: also measured, and the divergences between the two on the student's own samples.
      step: which checkpoint of the directory: 'best', a number, or None for the newest.
      student_dtype, teacher_dtype, teacher_step: as in training.
      split: of the task.
      max_examples: the first so many; None uses all.
      temperature: of the outputs; 0 is greedy.
      seed: of sampled outputs.
      sample_rows: rows of the printed table.
      output: the JSON file; by default `evaluation-SPLIT.json` in the run directory. Beside it, as
        .jsonl, every example's outputs and the log-probabilities of its reference's tokens.
      model_parallelism, fully_sharded: as in training.

    Returns:
      What was written.

    Raises:
      ValueError, FileNotFoundError: in one line.
    """
    path = pathlib.Path(output) if output else _default_output(checkpoint, split)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: {path} cannot be written there")
    mesh = meshes.make_mesh(model=model_parallelism)
    rules = meshes.rules_for(fully_sharded)
    student = models.load_model(
        "STUDENT", mesh, rules, task, None, checkpoint, step, dtype=student_dtype
    )
    teacher_dtype = teacher_dtype or models.inference_dtype()
    expert = teacher and models.load_model(
        "TEACHER", mesh, rules, task, None, teacher, teacher_step,
        dtype=teacher_dtype, params_dtype=teacher_dtype,
    )  # fmt: skip
    evaluation = evaluations.make_evaluation(
        task, split, mesh, rules, models.shared_valid_ids(student, expert, task),
        batch_size=evaluation_batch_size or batch_size, input_length=input_length,
        target_length=target_length, max_examples=max_examples, temperature=temperature,
    )  # fmt: skip
    key = evaluations.evaluation_key(seed)
    both = {"student": student, **({"teacher": expert} if expert else {})}
    generated, outputs = {}, {}
    for name, loaded in both.items():
        generated[name], outputs[name] = evaluation.outputs(loaded, seed)
    measured: dict[str, Any] = {name: values.metrics for name, values in generated.items()}
    if expert:
        meter = evaluation.divergence_meter(student, expert, max_batches=None)
        measured["on_policy_divergences"] = meter(student.params, expert.params, key)
    table = evaluation.sample_table({k: v.texts for k, v in generated.items()}, sample_rows)
    result = {
        "checkpoint": str(checkpoint),
        "step_folder": student.checkpoint,
        "teacher": expert and expert.checkpoint,
        "task": task.name,
        "split": split,
        "examples": len(evaluation.examples.inputs),
        "inputs_cut": evaluation.examples.inputs_cut,
        "targets_cut": evaluation.examples.targets_cut,
        "empty_examples": evaluation.examples.empty_examples,
        "temperature": temperature,
        "seed": seed,
        "bleu_signature": metrics.bleu_signature(),
        "metrics": measured,
        "samples": table,
        "outputs": path.with_suffix(".jsonl").name,
        **git_state(pathlib.Path(__file__).resolve().parents[2]),
        **environment(),
    }
    _write_outputs(path.with_suffix(".jsonl"), evaluation, generated, outputs)
    write_json(path, result)
    _print(result, table, path)
    return result


def _write_outputs(path, evaluation, generated, outputs) -> None:
    """One line an example: input, reference, and of every model text, tokens, log-probabilities."""
    temporary = path.with_suffix(".jsonl.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for i, prompt in enumerate(evaluation.examples.inputs):
            row = {"index": i, "input": prompt, "reference": evaluation.examples.targets[i]}
            for name, texts in generated.items():
                output = outputs[name][i]
                row[name] = {
                    "text": texts.texts[i],
                    "tokens": output.tokens[0],
                    "log_prob": output.log_probs[0],
                    "reference_log_probs": output.target_log_probs,
                }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    temporary.replace(path)


def _default_output(checkpoint, split) -> pathlib.Path:
    folder = pathlib.Path(checkpoint)
    while folder.name.isdigit() or folder.name == "checkpoints":
        folder = folder.parent
    return folder / f"evaluation-{split}.json"


def _print(result, table, path) -> None:
    console = rich.console.Console(soft_wrap=True)
    for name, values in result["metrics"].items():
        facts = ", ".join(f"{key} {value:.4g}" for key, value in values.items())
        console.print(f"{name}: {facts}", highlight=False)
    console.print(markdown_table(table), markup=False, highlight=False)
    console.print(f"written: {path}", highlight=False)
    if result["targets_cut"] or result["inputs_cut"] or result["empty_examples"]:
        cut = {k: result[k] for k in ("inputs_cut", "targets_cut", "empty_examples")}
        console.print(json.dumps(cut), highlight=False)

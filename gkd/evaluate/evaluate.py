"""The verb `evaluate`: measures a checkpoint on a task, beside its teacher if there is one."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import gin

from gkd.configuration import setting_values
from gkd.configuration.verb_settings import EVALUATE
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidValue, MissingFile
from gkd.evaluate import evaluation as evaluations
from gkd.evaluate import report as report
from gkd.evaluate.reward_scoring import load_judge
from gkd.files.atomic_files import write_json
from gkd.infer.decode_options import Decoding
from gkd.parallel import job_messages, processes
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.runs.lease import job_lease
from gkd.runs.provenance import provenance
from gkd.runs.run_directory import config_bindings
from gkd.step_names import BEST_OR_NEWEST


def evaluate(
    checkpoint: str,
    task: TaskSpec,
    input_length: int,
    target_length: int,
    batch_size: int,
    evaluation_batch_size: int | None = None,
    teacher: str | None = None,
    step: int | str | None = BEST_OR_NEWEST,
    student_dtype: str | None = None,
    teacher_dtype: str | None = None,
    teacher_step: int | str | None = None,
    reward: Any = None,
    reward_model: str | None = None,
    split: str = "validation",
    max_examples: int | None = None,
    temperatures: Sequence[float] | float = (),
    samples: int = 1,
    beams: int = 0,
    length_penalty: float | None = None,
    seed: int = 0,
    sample_rows: int = 4,
    output: str | None = None,
    model_parallelism: int = 1,
    fully_sharded: bool = False,
) -> dict[str, Any]:
    """Measures a checkpoint on a split in every way of decoding asked for; writes it as JSON.

    Outputs are always written greedily, and sampled or searched for besides if so asked. A task
    whose options are scored (`TaskSpec.choices`) is answered with the most likely option instead.

    Args:
      checkpoint: a run directory, one step folder, a Hugging Face directory, a T5X checkpoint.
      task: what to measure on.
      input_length, target_length: in tokens.
      batch_size: rows of a batch.
      evaluation_batch_size: the same, where it differs from training's.
      teacher: also measured, and every divergence between the two on the student's own samples and
        on the references.
      step: of a run: 'best_or_newest', 'best', 'newest' or a number; as for `infer` and `convert`.
      student_dtype, teacher_dtype, teacher_step: as in training.
      reward, reward_model: as in training: what the outputs are worth, in percent.
      split: of the task.
      max_examples: the first so many; None uses all.
      temperatures: of sampled outputs, each measured by itself.
      samples: outputs a prompt at each temperature.
      beams: of a beam search; 0 is none.
      length_penalty: of the beam search; None is T5's 0.6.
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
    setting_values.check_call(EVALUATE, locals())
    ways = decodings(task, target_length, temperatures, samples, beams, length_penalty, seed)
    path = pathlib.Path(output) if output else _default_output(checkpoint, split)
    if not path.parent.is_dir():
        raise MissingFile(f"{path.parent} is no folder: {path} cannot be written there")
    with job_lease(path, f"output {path}") as lease:
        mesh = meshes.make_mesh(model=model_parallelism)
        rules = meshes.rules_for(fully_sharded)
        student = model_loading.load_model(
            "STUDENT", mesh, rules, task, None, checkpoint, step, dtype=student_dtype
        )
        teacher_dtype = teacher_dtype or model_loading.inference_dtype(mesh)
        expert = teacher and model_loading.load_model(
            "TEACHER", mesh, rules, task, None, teacher, teacher_step,
            dtype=teacher_dtype, params_dtype=teacher_dtype,
        )  # fmt: skip
        found = {"STUDENT": student.checkpoint, "TEACHER": str(expert and expert.checkpoint)}
        job_messages.check_same("checkpoints", found, processes.start_seconds())
        rows = evaluation_batch_size or batch_size
        evaluation = evaluations.make_evaluation(
            task, split, mesh, rules, model_loading.shared_valid_ids(student, expert, task),
            batch_size=rows, input_length=input_length, target_length=target_length,
            max_examples=max_examples, reward=reward,
            judge=load_judge(reward, reward_model, None, mesh, rules, task),
        )  # fmt: skip
        both = {"student": student, **({"teacher": expert} if expert else {})}
        outputs = {name: _outputs(evaluation, loaded, ways) for name, loaded in both.items()}
        divergences = None
        if expert:
            measure = evaluation.divergences(student, expert, max_batches=None)
            divergences = measure(student.params, expert.params, evaluations.evaluation_key(seed))
        first = {name: next(iter(made.values())).texts for name, made in outputs.items()}
        examples = evaluation.examples
        result = {
            "checkpoint": str(checkpoint),
            "student": report.model_facts(student, task),
            "teacher": expert and report.model_facts(expert, task),
            "task": task.name,
            "split": split,
            "examples": len(examples.inputs),
            "inputs_cut": examples.inputs_cut,
            "targets_cut": examples.targets_cut,
            "empty_examples": examples.empty_examples,
            "input_length": input_length,
            "target_length": target_length,
            "batch_size": rows,
            "mesh": dict(mesh.shape),
            "seed": seed,
            "decoding": report.decoding_facts(ways),
            "signatures": report.signatures(outputs),
            "metrics": report.all_metrics(outputs, divergences),
            "by_position": divergences and divergences.by_position,
            "samples": evaluation.sample_table(first, sample_rows),
            "outputs": path.with_suffix(".jsonl").name,
            "bindings": config_bindings(gin.config_str()),
            **provenance(),
        }
        lease.check()
        if processes.is_primary_process():
            report.write_outputs(path.with_suffix(".jsonl"), evaluation, outputs)
            write_json(path, result)
            report.print_summary(result, path)
        return result


def decodings(
    task: TaskSpec,
    target_length: int,
    temperatures: Sequence[float] | float,
    samples: int,
    beams: int,
    length_penalty: float | None,
    seed: int,
) -> dict[str, Decoding | None]:
    """The ways of decoding asked for, by the names that results have; None: options are scored.

    Args:
      All: as `evaluate`'s.

    Raises:
      ValueError: a setting that means nothing, or that the others would ignore.
    """
    temperatures = temperatures if isinstance(temperatures, Sequence) else (temperatures,)
    if task.choices is not None:
        if temperatures or beams or samples != 1:
            raise InvalidValue(
                f"task {task.name} scores its options, nothing is written: leave out "
                "EVALUATION_TEMPERATURES, EVALUATION_SAMPLES and EVALUATION_BEAMS"
            )
        return {"options": None}
    if samples < 1:
        raise InvalidValue(f"EVALUATION_SAMPLES is {samples}: use 1 or more")
    if samples > 1 and not temperatures:
        raise InvalidValue(
            f"EVALUATION_SAMPLES is {samples} but nothing is sampled: set EVALUATION_TEMPERATURES"
        )
    ways: dict[str, Decoding | None] = {"greedy": Decoding(target_length)}
    for temperature in temperatures:
        name = f"temperature_{temperature}"
        if not isinstance(temperature, int | float) or temperature <= 0 or name in ways:
            raise InvalidValue(
                f"EVALUATION_TEMPERATURES are {tuple(temperatures)}: use different numbers above 0 "
                "(0, greedy, is always measured)"
            )
        ways[name] = Decoding(
            target_length, temperature=float(temperature), samples=samples, seed=seed
        )
    if beams or length_penalty is not None:
        ways[f"beam_{beams}"] = Decoding(target_length, beams=beams, length_penalty=length_penalty)
    return ways


def _outputs(evaluation, loaded, ways) -> dict[str, evaluations.Generated]:
    """A model's outputs in every way of decoding; the references are scored with the first."""
    made: dict[str, evaluations.Generated] = {}
    for name, decoding in ways.items():
        made[name] = evaluation.generator(loaded, decoding, score=not made)(loaded.params)
    return made


def _default_output(checkpoint, split) -> pathlib.Path:
    folder = pathlib.Path(checkpoint)
    while folder.name.isdigit() or folder.name == "checkpoints":
        folder = folder.parent
    return folder / f"evaluation-{split}.json"

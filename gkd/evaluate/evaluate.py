"""The verb `evaluate`: measures a checkpoint on a task, beside its teacher if there is one."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from gkd.checkpoints.folders import CHECKPOINTS_FOLDER, run_of
from gkd.configuration import setting_values
from gkd.configuration.experiment import Batches, Evaluation, Execution, Method, Teacher
from gkd.configuration.verb_settings import EVALUATE
from gkd.data.tasks import TaskSpec
from gkd.errors import InvalidValue, MissingFile
from gkd.evaluate import evaluation as evaluations
from gkd.evaluate import report
from gkd.evaluate.reward_scoring import load_reward_model
from gkd.files.atomic_files import check_folder_of, write_json
from gkd.infer.decode_options import Decoding
from gkd.parallel import job_messages, processes
from gkd.parallel import mesh as meshes
from gkd.runs import model_loading
from gkd.runs.lease import job_lease
from gkd.runs.metrics_log import METRICS_FILE
from gkd.runs.provenance import provenance
from gkd.runs.run_directory import CONFIG_FILE, current_bindings
from gkd.step_names import BEST_OR_NEWEST


def evaluate(
    checkpoint: str,
    task: TaskSpec,
    batches: Batches,
    teacher: Teacher = Teacher(),  # noqa: B008 (frozen)
    method: Method = Method(),  # noqa: B008
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    execution: Execution = Execution(),  # noqa: B008
    step: int | str | None = BEST_OR_NEWEST,
    dtype: str | None = None,
    seed: int = 0,
    output: str | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint on a split in every way of decoding asked for; writes it as JSON.

    Outputs are always decoded greedily, and sampled or searched for besides if so asked. A task
    whose options are scored (`TaskSpec.choices`) is answered with the most likely option instead.

    Args:
      checkpoint: a run directory, one step folder, a Hugging Face directory, a T5X checkpoint.
      task: the task to measure on.
      batches: lengths in tokens, and rows per batch where `evaluation` has none of its own.
      teacher: measured too, with every divergence between the two on the student's own samples and
        on the references.
      method: its reward is given to the outputs, in percent.
      evaluation: split, examples and ways of decoding.
      execution: the device mesh.
      step: step of a run: 'best_or_newest', 'best', 'newest' or a number.
      dtype: dtype of the student's computation; None is its own.
      seed: PRNG seed of sampled outputs.
      output: the JSON file; by default `evaluation-SPLIT.json` in the run directory. Beside it, as
        .jsonl, every example's outputs and the log-probabilities of its reference's tokens.

    Returns:
      What was written.

    Raises:
      ValueError, FileNotFoundError: in one line.
    """
    setting_values.check_call(EVALUATE, locals())
    if output is None:
        _check_trained(checkpoint)
    decode_options = decodings(task, batches.target_length, evaluation, seed)
    path = _output(checkpoint, output, evaluation.split)
    outputs = path.with_suffix(".jsonl")
    with job_lease(path, f"output {path}") as lease:
        mesh = meshes.make_mesh(model=execution.model_parallelism)
        rules = meshes.rules_for(execution.fully_sharded)
        models = _load_models(checkpoint, step, dtype, teacher, task, mesh, rules)
        data = evaluations.make_evaluation(
            task, evaluation.split, mesh,
            model_loading.scored_valid_ids(models["student"], task),
            batch_size=evaluation.batch_size or batches.size, input_length=batches.input_length,
            target_length=batches.target_length, max_examples=evaluation.examples,
            reward=method.reward,
            reward_model=load_reward_model(
                method.reward, method.reward_model, None, mesh, rules, task
            ),
        )  # fmt: skip
        measured = _measure(data, models, decode_options, seed)
        result = {
            "checkpoint": str(checkpoint),
            **_facts(measured, data, decode_options),
            "split": evaluation.split,
            "input_length": batches.input_length,
            "target_length": batches.target_length,
            "seed": seed,
            "samples": data.sample_table(measured.first_texts(), evaluation.sample_rows),
            "outputs": outputs.name,
            "bindings": current_bindings(),
            **provenance(),
        }
        lease.check()
        if processes.is_primary_process():
            report.write_outputs(outputs, data, measured.outputs, measured.divergences)
            write_json(path, result)
            report.print_summary(result, path)
        return result


def _check_trained(checkpoint: str) -> None:
    """Refuses the directory of a run that has not saved a checkpoint yet."""
    folder = pathlib.Path(checkpoint)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_dir() and names and not names & {CHECKPOINTS_FOLDER, CONFIG_FILE, METRICS_FILE}:
        return  # another format, whose reader explains what is missing
    if folder.is_file() or any(p.name.isdecimal() for p in folder.glob(f"{CHECKPOINTS_FOLDER}/*")):
        return
    raise MissingFile(
        f"MODEL_DIR {checkpoint} {'has no checkpoint yet' if folder.is_dir() else 'is no folder'}: "
        "train first, by `python -m gkd train` with the same gin files and overrides"
    )


def _load_models(
    checkpoint, step, dtype, teacher, task, mesh, rules
) -> dict[str, model_loading.LoadedModel]:
    """The student and, where one is named, the teacher; all processes must read the same."""
    models = {
        "student": model_loading.load_model(
            "STUDENT", mesh, rules, task, None, checkpoint, step, dtype=dtype
        )
    }
    if teacher.checkpoint is not None:
        loaded = model_loading.load_model(
            "TEACHER", mesh, rules, task, None, teacher.checkpoint, teacher.step,
            **model_loading.inference_dtypes(teacher.dtype, mesh, None),
        )  # fmt: skip
        size = models["student"].config.vocab_size
        models["teacher"] = model_loading.with_scored_ids(loaded, size)
    read = {"STUDENT": models["student"].checkpoint, "TEACHER": "None"}
    if "teacher" in models:
        read["TEACHER"] = models["teacher"].checkpoint
    job_messages.check_same("checkpoints", read, processes.start_seconds(os.environ))
    return models


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A student's and perhaps a teacher's outputs by way of decoding, and their divergences."""

    models: dict[str, model_loading.LoadedModel]
    outputs: dict[str, dict[str, evaluations.Generated]]
    divergences: Any

    def first_texts(self) -> dict[str, Any]:
        """Each model's texts of the first way of decoding."""
        return {name: next(iter(made.values())).texts for name, made in self.outputs.items()}


def _measure(data, models, decode_options, seed) -> _Measured:
    student, teacher = models["student"], models.get("teacher")
    outputs = {
        name: _outputs(data, name, loaded, decode_options) for name, loaded in models.items()
    }
    divergences = None
    if teacher:
        measure = data.divergences(student, teacher, max_batches=None, keep_tokens=True)
        divergences = measure(student.params, teacher.params, evaluations.evaluation_key(seed))
    return _Measured(models, outputs, divergences)


def _facts(measured, data, decode_options) -> dict[str, Any]:
    """The models, the data, the ways of decoding and all metrics, as JSON."""
    examples, divergences = data.examples, measured.divergences
    teacher = measured.models.get("teacher")
    return {
        "student": report.model_facts(measured.models["student"], data.task),
        "teacher": teacher and report.model_facts(teacher, data.task),
        "task": data.task.name,
        "examples": len(examples.inputs),
        "inputs_cut": examples.inputs_cut,
        "targets_cut": examples.targets_cut,
        "empty_examples": examples.empty_examples,
        "batch_size": data.batch_size,
        "mesh": dict(data.mesh.shape),
        "decoding": report.decoding_facts(decode_options),
        "signatures": report.signatures(measured.outputs),
        "metrics": report.all_metrics(measured.outputs, divergences),
        "by_position": divergences and divergences.by_position,
    }


def decodings(
    task: TaskSpec, target_length: int, evaluation: Evaluation, seed: int
) -> dict[str, Decoding | None]:
    """The ways of decoding asked for, by the names that results have; None: options are scored.

    Args:
      task: the task; one whose options are scored decodes nothing.
      target_length: tokens per output at most.
      evaluation: temperatures, samples, beams and length penalty.
      seed: PRNG seed of sampled outputs.

    Raises:
      ValueError: a setting that means nothing, or that the others would ignore.
    """
    temperatures, samples = evaluation.temperatures, evaluation.samples
    beams, length_penalty = evaluation.beams, evaluation.length_penalty
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
    decode_options: dict[str, Decoding | None] = {"greedy": Decoding(target_length)}
    for temperature in temperatures:
        name = f"temperature_{temperature}"
        if not isinstance(temperature, int | float) or temperature <= 0 or name in decode_options:
            raise InvalidValue(
                f"EVALUATION_TEMPERATURES are {tuple(temperatures)}: use different numbers above 0 "
                "(0, greedy, is always measured)"
            )
        decode_options[name] = Decoding(
            target_length, temperature=float(temperature), samples=samples, seed=seed
        )
    if beams or length_penalty is not None:
        decode_options[f"beam_{beams}"] = Decoding(
            target_length, beams=beams, length_penalty=length_penalty
        )
    return decode_options


def _outputs(evaluation, role, loaded, decode_options) -> dict[str, evaluations.Generated]:
    """A model's outputs in every way of decoding; the references are scored with the first."""
    made: dict[str, evaluations.Generated] = {}
    for name, decoding in decode_options.items():
        generate = evaluation.generator(loaded, decoding, not made, teacher=role == "teacher")
        made[name] = generate(loaded.params)
    return made


def _output(checkpoint, output, split) -> pathlib.Path:
    """The path of the result, by default in the run directory; checked."""
    path = pathlib.Path(output or run_of(checkpoint) / f"evaluation-{split}.json")
    if path.suffix != ".json":
        raise InvalidValue(f"output {path} holds JSON: give it a name in .json")
    check_folder_of(path)
    return path

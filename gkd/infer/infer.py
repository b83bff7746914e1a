"""The verb `infer`: generates completions for a file or split, and continues where it stopped."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from gkd.configuration import setting_values
from gkd.configuration.verb_settings import INFER
from gkd.errors import InvalidValue
from gkd.infer.decode_options import Decoding
from gkd.runs.signals import quick_interrupt
from gkd.step_names import BEST_OR_NEWEST

BATCHES_PER_WINDOW = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSource:
    """The source of inputs: the rows of a file, or a split of a task.

    Attributes:
      input: path of a file of texts or JSON lines, see `gkd.infer.inputs.open_source`.
      input_field, target_field: names of fields of the file's rows; None chooses the usual ones.
      delimiter: character between the cells of CSV and TSV files; None is by suffix.
      quoting: 'csv' for the rules of CSV, 'text' for quotes that are text; None is by suffix.
      prefix: text before each of the file's inputs.
      task: path of a gin file that defines TASK, instead of `input`.
      split: split of the task; None is 'train'.
      gin: overrides NAME=VALUE of the task's gin file.
      allow_module: modules that the task's gin file may import besides gkd's own.
    """

    input: str | None = None
    input_field: str | None = None
    target_field: str | None = None
    delimiter: str | None = None
    quoting: str | None = None
    prefix: str = ""
    task: str | None = None
    split: str | None = None
    gin: Sequence[str] | None = None
    allow_module: Sequence[str] | None = None


def infer_options(**options: Any) -> dict[str, Any]:
    """Runs `infer` with the command line's options, see `plain_arguments.add_infer_arguments`.

    Args:
      **options: the parameters of `infer`, and the fields of its objects by their names.

    Raises:
      ValueError: an option is out of range.
    """
    setting_values.check_call(INFER, options)

    def built(kind):
        names = [field.name for field in dataclasses.fields(kind)]
        return kind(**{name: options.pop(name) for name in names if name in options})

    return infer(source=built(InputSource), decoding=built(Decoding), **options)


def infer(
    model: str,
    output: str,
    source: InputSource,
    decoding: Decoding,
    step: int | str | None = BEST_OR_NEWEST,
    vocabulary: str | None = None,
    input_length: int = 1024,
    batch_size: int = 16,
    dtype: str | None = None,
    score: bool = False,
    top_k_log_probs: int | None = None,
    model_parallelism: int = 1,
) -> dict[str, Any]:
    """Writes the model's completions for every input of a file, or of a task's split.

    Inputs are texts, or chats, which the model's own template renders. A line of the output holds
    index, sample, input, text, tokens (through EOS), log_prob (over `valid_ids`), stop ('eos',
    'length', or 'none' if a beam search found fewer completions), with `score` target_log_probs,
    and the row's other fields. With `top_k_log_probs` it also holds target_tokens, target_top_ids
    and target_top_log_probs (the model then reads `teacher_inputs`). OUTPUT.partial holds
    incomplete output, OUTPUT.settings.json the settings; the same call continues it, bit for bit.

    Args:
      model: path of a run directory or step folder, a Hugging Face directory, or a T5X checkpoint;
        or the name of a model on the Hugging Face Hub.
      output: path of the JSON Lines file to write.
      source: source of the inputs.
      decoding: options of decoding: length, sampling or beam search.
      step: step of a run: 'best_or_newest', 'best', 'newest' or a number.
      vocabulary: path of a sentencepiece model or folder, or 'bytes'; None is the model's own.
      input_length: greatest length of an input in tokens; longer inputs are truncated and counted.
      batch_size: inputs per batch.
      dtype: dtype of parameters and computation; None is bfloat16 on accelerators, float32 on CPU.
      score: score the targets too, token by token.
      top_k_log_probs: number of most probable ids to write at every target token.
      model_parallelism: number of devices along the mesh's model axis.

    Returns:
      The totals of this call; empty if the output was complete.

    Raises:
      ValueError, FileNotFoundError: settings contradict one another, a file is damaged or missing.
      FileExistsError: the output was begun with other settings, or another launch writes it.
      Stopped: a signal was received; complete windows are kept.
    """
    with quick_interrupt():
        from gkd.infer import output_files
        from gkd.parallel import mesh as meshes
        from gkd.runs import checkpoint_vocabulary, model_loading

    files = output_files.OutputFiles(pathlib.Path(output))
    files.check()
    _check_one_process()
    inputs = _open_inputs(source, score, top_k_log_probs)
    opened = model_loading.open_model("MODEL", model, step)
    words = checkpoint_vocabulary.vocabulary_of(opened, vocabulary)
    inputs = inputs.for_vocabulary(words, source.prefix)
    if top_k_log_probs:
        inputs.check_vocabulary(words)
    mesh = meshes.make_mesh(model=model_parallelism)
    dtype = dtype or model_loading.default_dtype(mesh)
    window = BATCHES_PER_WINDOW * batch_size
    facts = {
        **_model_facts(opened),
        "vocabulary": checkpoint_vocabulary.describe_vocabulary(words),
        **inputs.settings(),
        **_decoding_facts(decoding),
        "prefix": source.prefix,
        "input_length": input_length,
        "batch_size": batch_size,
        "window": window,
        "dtype": dtype,
        "score": score,
        "top_k_log_probs": top_k_log_probs,
        "model_parallelism": model_parallelism,
    }
    files = output_files.OutputFiles(files.output, window, inputs.count, decoding.samples)
    return _write(inputs, files, (model, opened), mesh, words, decoding, facts)


def _write(inputs, files, chosen, mesh, words, decoding, facts) -> dict[str, Any]:
    """Writes the missing completions; returns this call's totals.

    Args:
      inputs, files: inputs to read, and files to write.
      chosen: the model as the user named it, and its opened checkpoint.
      mesh: device mesh.
      words: vocabulary of the model.
      decoding: options of decoding: length, sampling or beam search.
      facts: all settings, as recorded beside the output.
    """
    model, opened = chosen
    complete = f"{files.output} is complete, with the same settings: nothing to do"
    if files.is_complete(facts):
        print(complete)
        return {}
    with files.lease() as lease:
        done = files.resume(facts)
        if done is None:  # another launch has completed it just now
            print(complete)
            return {}
        inputs.describe()
        if opened.chosen:
            print(f"model {model}: {opened.chosen}")
        generator = _generator(opened, mesh, words, decoding, facts)
        totals = _job(inputs, files, lease, generator, words, facts).run(done)
        lease.check()
        files.finish()
    print(_described(totals, inputs.count, done), f"written: {files.output}", sep="\n")
    return totals


def _check_one_process() -> None:
    import jax

    if jax.process_count() > 1:
        raise InvalidValue("infer runs in one process: split the input among separate calls")


def _model_facts(opened: Any) -> dict[str, Any]:
    return {"model": opened.name, "model_digest": opened.digest, "format": opened.format}


def _decoding_facts(decoding: Decoding) -> dict[str, Any]:
    return {**dataclasses.asdict(decoding), "length_penalty": decoding.penalty}


def _open_inputs(source: InputSource, score: bool, top_k_log_probs: int | None) -> Any:
    from gkd.infer import inputs, task_inputs
    from gkd.tables.delimited import TsvFormat

    if top_k_log_probs is not None and not score:
        raise InvalidValue("top_k_log_probs belong to the targets' tokens: give --score too")
    if _is_task(source):
        return task_inputs.open_split(
            source.task, source.gin or (), source.split or "train", score,
            source.allow_module or (), teacher=top_k_log_probs is not None,
        )  # fmt: skip
    quoting = None if source.quoting is None else source.quoting == "csv"
    form = TsvFormat(delimiter=source.delimiter, quoting=quoting)
    return inputs.open_source(source.input, source.input_field, source.target_field, score, form)


def _generator(opened, mesh, words, decoding, facts) -> Any:
    """Loads the model onto the mesh, as a generator of completions."""
    from gkd.data import length_buckets
    from gkd.infer import generator
    from gkd.parallel import mesh as meshes
    from gkd.runs import model_loading
    from gkd.vocabularies import vocabularies

    rules = meshes.rules_for()
    loaded = model_loading.load_checkpoint(opened, mesh, rules, facts["dtype"], words)
    return generator.Generator(
        loaded,
        mesh,
        vocabularies.valid_ids(words, loaded.config.vocab_size),
        decoding,
        buckets=length_buckets.doubled_lengths(facts["input_length"]),
        batch_size=facts["batch_size"],
        score=facts["score"],
        top_k_log_probs=facts["top_k_log_probs"] or 0,
    )


def _job(inputs, files, lease, generator, words, facts) -> Any:
    from gkd.infer import requests

    return requests.InferenceJob(
        source=inputs,
        files=files,
        lease=lease,
        generator=generator,
        vocabulary=words,
        prefix=facts["prefix"],
        input_length=facts["input_length"],
        window=facts["window"],
    )


def _is_task(source: InputSource) -> bool:
    """True if a task is read; refuses two sources, and options of the other source."""
    if (source.input is None) == (source.task is None):
        raise InvalidValue("give either --input=FILE or --task=FILE.gin")
    if source.task is None and (source.split or source.gin):
        raise InvalidValue("--split and --gin.NAME belong to --task: give it instead of --input")
    for name in ("prefix", "input_field", "target_field", "delimiter", "quoting"):
        if source.task is not None and getattr(source, name):
            raise InvalidValue(
                f"--{name} belongs to --input: a task has its own, change it with --gin.NAME=VALUE"
            )
    return source.task is not None


def _described(totals: dict[str, Any], count: int, done: int) -> str:
    """Renders the totals as one line."""
    before = f" ({done} by earlier launches)" if done else ""
    targets = f", {totals['targets_cut']} targets truncated" if "targets_cut" in totals else ""
    rate = totals["tokens"] / max(totals["seconds"], 1e-9)
    share = 100 * totals["stopped_by_eos"] / max(totals["samples"], 1)
    return (
        f"{count} inputs{before}; this launch: {totals['inputs_cut']} inputs truncated{targets}, "
        f"{totals['samples']} samples, {share:.1f}% of them stopped by EOS, {totals['tokens']} "
        f"tokens, {rate:,.0f} tokens/s, {totals['programs']} programs compiled"
    )

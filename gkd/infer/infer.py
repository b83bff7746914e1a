"""The verb `infer`: outputs for many inputs, in order; started again, it continues."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from gkd.configuration import setting_values
from gkd.configuration.verb_settings import INFER
from gkd.errors import InvalidValue
from gkd.runs.signals import quick_interrupt
from gkd.step_names import BEST_OR_NEWEST

BATCHES_PER_WINDOW = 32


def infer(
    model: str,
    output: str,
    input: str | None = None,
    task: str | None = None,
    split: str | None = None,
    gin: Sequence[str] | None = None,
    step: int | str | None = BEST_OR_NEWEST,
    input_field: str | None = None,
    target_field: str | None = None,
    prefix: str = "",
    vocabulary: str | None = None,
    input_length: int = 1024,
    max_length: int = 128,
    batch_size: int = 16,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples: int = 1,
    beams: int = 0,
    length_penalty: float | None = None,
    seed: int = 0,
    dtype: str | None = None,
    score: bool = False,
    top_k_log_probs: int | None = None,
    model_parallelism: int = 1,
    allow_module: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes what a model answers to every input of a file, or of a task's split.

    A line of the output holds index, sample, input, text, tokens (through EOS), log_prob (over the
    usable ids), stop ('eos', 'length', or 'none' where a beam search found fewer outputs), with
    `score` target_log_probs, and the row's other fields. With `top_k_log_probs` it also holds
    target_tokens and, of each of them, target_top_ids and target_top_log_probs (over the usable
    ids, best first): an offline teacher, see `gkd.data.offline_teacher`. The index of a task's row
    is its number in the split. Unfinished work is in OUTPUT.partial; OUTPUT.settings.json says how
    and from what it was made. The same call continues it, and the result is the same byte for byte.

    Args:
      As `plain_arguments.add_infer_arguments` describes them.

    Returns:
      The totals of this call; none where the output was complete.

    Raises:
      ValueError, FileNotFoundError, FileExistsError: in one line.
      Stopped: a signal came; what was complete is kept.
    """
    setting_values.check_call(INFER, locals())
    with quick_interrupt():
        import jax

        from gkd.infer import generator, inputs, output_files, requests
        from gkd.parallel import mesh as meshes
        from gkd.runs import model_loading
        from gkd.vocabularies import vocabularies

    files = output_files.OutputFiles(pathlib.Path(output))
    files.check()
    if jax.process_count() > 1:
        raise InvalidValue("infer runs in one process: give each process its own part of the input")
    decoding = generator.Decoding(
        max_length, temperature, top_k, top_p, samples, beams, length_penalty, seed
    )
    _check_top_k(top_k_log_probs, score)
    own = {"--prefix": prefix, "--input_field": input_field, "--target_field": target_field}
    if _is_task(input, task, split, gin, own):
        source = inputs.open_split(task, gin or (), split or "train", score, allow_module or ())
    else:
        source = inputs.open_source(input, input_field, target_field, score)
    opened = model_loading.open_model("MODEL", model, step)
    words = model_loading.vocabulary_of(opened, vocabulary)
    if top_k_log_probs:
        source.check_vocabulary(words)
    mesh, rules = meshes.make_mesh(model=model_parallelism), meshes.rules_for()
    dtype = dtype or model_loading.inference_dtype(mesh)
    window = BATCHES_PER_WINDOW * batch_size
    facts = {
        "model": str(opened.path),
        "format": opened.format,
        "vocabulary": model_loading.describe_vocabulary(words),
        **source.settings(),
        **dataclasses.asdict(decoding),
        "length_penalty": decoding.penalty,
        "prefix": prefix,
        "input_length": input_length,
        "batch_size": batch_size,
        "window": window,
        "dtype": dtype,
        "score": score,
        "top_k_log_probs": top_k_log_probs,
        "model_parallelism": model_parallelism,
    }
    complete = f"{output} is complete, and was written with these settings: nothing to do"
    files = output_files.OutputFiles(files.output, window, source.count, samples)
    if files.is_complete(facts):
        print(complete)
        return {}
    with files.lease() as lease:
        done = files.resume(facts)
        if done is None:  # another launch has ended just now
            print(complete)
            return {}
        source.describe()
        if opened.chosen:
            print(f"model {model}: {opened.chosen}")
        loaded = model_loading.load_checkpoint(opened, mesh, rules, dtype)
        valid = vocabularies.valid_ids(words, loaded.config.vocab_size)
        buckets = generator.length_buckets(input_length)
        write_outputs = generator.Generator(
            loaded, mesh, rules, valid, decoding, buckets, batch_size, score, top_k_log_probs or 0
        )
        job = requests.InferenceJob(
            source, files, lease, write_outputs, words, prefix, input_length, window
        )
        totals = job.run(done)
        lease.check()
        files.finish()
    print(_described(totals, source.count, done), f"written: {output}", sep="\n")
    return totals


def _check_top_k(top_k_log_probs, score) -> None:
    if top_k_log_probs is not None and not score:
        raise InvalidValue("top_k_log_probs are of the targets' tokens: give --score too")


def _is_task(input, task, split, gin, of_files) -> bool:
    """Whether a task is read; ValueError unless there is one source, with its own options only."""
    if (input is None) == (task is None):
        raise InvalidValue("give either --input=FILE or --task=FILE.gin")
    if task is None and (split or gin):
        raise InvalidValue("--split and --gin.NAME are of --task: give that instead of --input")
    for option, value in of_files.items():
        if task is not None and value:
            raise InvalidValue(
                f"{option} is of --input: a task has its own, change it with --gin.NAME=VALUE"
            )
    return task is not None


def _described(totals: dict[str, Any], count: int, done: int) -> str:
    """The line of totals."""
    before = f" ({done} by earlier launches)" if done else ""
    targets = f", {totals['targets_cut']} targets cut" if "targets_cut" in totals else ""
    rate = totals["tokens"] / max(totals["seconds"], 1e-9)
    share = 100 * totals["stopped_by_eos"] / max(totals["samples"], 1)
    return (
        f"{count} inputs{before}; this launch: {totals['inputs_cut']} inputs cut{targets}, "
        f"{totals['samples']} samples, {share:.1f}% of them stopped by EOS, {totals['tokens']} "
        f"tokens, {rate:,.0f} tokens/s, {totals['programs']} programs compiled"
    )

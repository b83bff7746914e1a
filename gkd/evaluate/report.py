"""Writes an evaluation: JSON with all that is needed to cite it, JSONL, a printed summary."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import rich.console

from gkd.evaluate.divergence_meter import Divergences
from gkd.evaluate.evaluation import Evaluation, Generated
from gkd.files.atomic_files import replacing
from gkd.infer.decode_options import Decoding
from gkd.metrics import metrics, sample_metrics
from gkd.runs import model_loading, tables
from gkd.vocabularies.token_texts import token_texts

Outputs = Mapping[str, Mapping[str, Generated]]  # model -> way of decoding -> outputs


def signatures(outputs: Outputs | None = None) -> dict[str, str]:
    """Returns the signature of each metric, to be printed with a score.

    Args:
      outputs: the outputs measured, whose metrics' tokenizers are named; None names the defaults.
    """
    used: dict[str, list[str]] = {}
    for by_decoding in (outputs or {}).values():
        for made in by_decoding.values():
            for metric, found in made.signatures.items():
                used.setdefault(metric, []).extend(found)
    return {
        "bleu": metrics.bleu_signature(),
        "self_bleu": sample_metrics.self_bleu_signature(),
        "rouge": metrics.rouge_signature(),
        **{metric: "; ".join(dict.fromkeys(found)) for metric, found in used.items()},
        "samples": "task metrics are means over a prompt's samples",
        "options": "sum of an option's token log-probabilities, with T5's EOS, raw logits",
        "reference_log_prob": "mean over all tokens with EOS, raw logits, natural log",
        "divergences": (
            "nats at temperature 1 over valid ids; mean over a sequence's tokens, then over "
            "sequences; on_policy: the student's samples at temperature 1"
        ),
    }


def model_facts(loaded: model_loading.LoadedModel, task: Any) -> dict[str, Any]:
    """Describes the measured model: step folder, size, and its checkpoint's description."""
    return {
        "step_folder": loaded.checkpoint,
        "digest": loaded.digest,
        "chosen": loaded.chosen,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(loaded.params)),
        **model_loading.describe(loaded.config, task.vocabulary),
    }


def decoding_facts(decodings: Mapping[str, Decoding | None]) -> dict[str, Any]:
    """The settings of every way of decoding, by its name."""
    return {
        name: decoding and {**dataclasses.asdict(decoding), "length_penalty": decoding.penalty}
        for name, decoding in decodings.items()
    }


def all_metrics(outputs: Outputs, divergences: Divergences | None) -> dict[str, Any]:
    """Metrics by model and way of decoding, and the divergences between the two models."""
    measured: dict[str, Any] = {}
    for model, by_decoding in outputs.items():
        measured[model] = {name: made.metrics for name, made in by_decoding.items()}
        for made in by_decoding.values():
            if made.reference_log_probs is not None:
                scores = [score for row in made.reference_log_probs for score in row]
                mean = sum(scores) / len(scores)
                measured[model]["references"] = {
                    "reference_log_prob": mean, "reference_perplexity": math.exp(min(-mean, 700.0)),
                }  # fmt: skip
    if divergences is not None:
        measured["divergences"] = divergences.metrics
    return measured


def write_outputs(
    path: pathlib.Path,
    evaluation: Evaluation,
    outputs: Outputs,
    divergences: Divergences | None = None,
) -> None:
    """Writes one line per example: input, reference, and every model's outputs by decoding.

    Args:
      path: the JSONL file.
      evaluation: its examples.
      outputs: every model's outputs by decoding.
      divergences: those by token are written as `token_divergences`, with each token's text.
    """
    examples, by_token = evaluation.examples, divergences.by_token if divergences else ()
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for i, texts in enumerate(zip(examples.inputs, examples.targets, strict=True)):
            row: dict[str, Any] = {"index": i, "input": texts[0], "reference": texts[1]}
            if not isinstance(examples.references[i], str):
                row["references"] = examples.references[i]
            for model, by_decoding in outputs.items():
                row[model] = {name: made.records[i] for name, made in by_decoding.items()}
                for made in by_decoding.values():
                    if made.reference_log_probs is not None:
                        row[model]["reference_log_probs"] = made.reference_log_probs[i]
            if by_token:
                row["token_divergences"] = {
                    name: {
                        "pieces": token_texts(evaluation.task.vocabulary, each["tokens"]),
                        **each,
                    }
                    for name, each in by_token[i].items()
                }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def print_summary(result: Mapping[str, Any], path: pathlib.Path) -> None:
    """The metrics (of a task's parts only the means), the sample table, and what did not fit."""
    console = rich.console.Console(soft_wrap=True)
    for name in ("student", "teacher"):
        if result[name] and result[name]["chosen"]:
            facts = result[name]
            console.print(f"{name} {facts['step_folder']}: {facts['chosen']}", highlight=False)
    for name, values in result["metrics"].items():
        lines = values.items() if name != "divergences" else [("", values)]
        for decoding, numbers in lines:
            facts = [f"{key} {value:.4g}" for key, value in numbers.items() if "/" not in key]
            console.print(f"{name} {decoding}".rstrip() + f": {', '.join(facts)}", highlight=False)
    console.print(tables.markdown_table(result["samples"]), markup=False, highlight=False)
    console.print(f"written: {path}", highlight=False)
    cut = {name: result[name] for name in ("inputs_cut", "targets_cut", "empty_examples")}
    if any(cut.values()):
        console.print(json.dumps(cut), highlight=False)

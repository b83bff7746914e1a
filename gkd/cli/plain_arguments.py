"""The options of verbs without gin files of their own: their types and bounds are settings.

Nothing heavy is imported: `--help` and a refused value are a matter of milliseconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from gkd.configuration import setting_values
from gkd.configuration.setting_values import Setting
from gkd.configuration.verb_settings import (
    CONVERT,
    INFER,
    NEW,
    PLAN,
    PROGRAMS,
    REPORT,
)
from gkd.errors import UserError
from gkd.step_names import BEST_OR_NEWEST

STEP_HELP = "of a run: best_or_newest, best, newest or a number"


def value_of(text: str, setting: Setting, name: str) -> Any:
    """Parses and checks the text of an option.

    Args:
      text: text as the user typed it.
      setting: allowed values of the option.
      name: name of the option, for errors.

    Returns:
      The value.

    Raises:
      ValueError: the value is not allowed.
    """
    value: Any = text
    kinds = () if setting.literal is None else setting.literal.kinds
    if text not in setting.words:
        for kind in (int, float):
            if kind in kinds or (kind is int and float in kinds):
                try:
                    value = kind(text)
                    break
                except ValueError:
                    continue
    setting_values.check(value, setting, name)  # errors show it as typed: 1 and not 1.0
    if isinstance(value, int) and kinds and int not in kinds:
        value = float(text)
        setting_values.check(value, setting, name)  # a number of 400 digits becomes infinite
    return value


def _option(
    parser: argparse.ArgumentParser, table: dict[str, Setting], name: str, text: str, **how: Any
) -> None:
    """Declares one option; without a default in `how` it is required."""
    setting = table[name.lstrip("-")]

    def parsed(given: str) -> Any:
        try:
            return value_of(given, setting.items or setting, name.lstrip("-"))
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    literal = setting.literal
    if literal is not None and literal.kinds == (bool,):
        how["action"] = "store_true"
    elif literal is not None and literal.choices:
        how["choices"] = literal.choices
    else:
        how["type"] = parsed
    if setting.items is not None:
        how |= {"action": "append"} if name.startswith("--") else {"nargs": "+"}
    if name.startswith("--") and "default" not in how:
        how |= {"required": True, "default": argparse.SUPPRESS}
    parser.add_argument(name, help=text, **how)


def add_infer_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `infer`; their defaults are the function's."""

    def option(name: str, text: str, **how: Any) -> None:
        _option(parser, INFER, f"--{name}", text, **how)

    option("model", "a checkpoint: of a run, Hugging Face's, T5X's; or OWNER/NAME of the Hugging "
           "Face Hub", metavar="DIR")  # fmt: skip
    option("input", "FILE.txt, one input per line, or a data file: .jsonl, .csv, .tsv, …",
           metavar="FILE", default=None)  # fmt: skip
    option("task", "instead of --input, a gin file that defines TASK", metavar="FILE.gin",
           default=None)  # fmt: skip
    option("split", "split of --task; None is train", default=None)
    option("gin", "--gin.NAME=VALUE overrides a macro of --task's file; may be repeated",
           metavar="NAME=VALUE", default=None)  # fmt: skip
    option("allow_module", "lets --task's file import and use this Python module; may be repeated",
           metavar="NAME", default=None)  # fmt: skip
    option("output", "FILE.jsonl, one line per sample in the order of inputs", metavar="FILE")
    option("step", STEP_HELP, default=BEST_OR_NEWEST)
    option("input_field", "of the rows; None is the first of input, inputs, text, prompt",
           default=None)  # fmt: skip
    option("target_field", "for --score; None is the first of target, targets", default=None)
    option("delimiter", "between the cells of CSV and TSV; None is by suffix", default=None)
    option("quoting", "of CSV and TSV: csv, or text for plain text; None is by suffix",
           default=None)  # fmt: skip
    option("prefix", "text before every input; not copied to the output", default="")
    option("vocabulary", "spiece.model, a folder, or bytes; None: the checkpoint's own",
           metavar="FILE", default=None)  # fmt: skip
    option("input_length", "in tokens; longer inputs are truncated", default=1024)
    option("max_length", "of a completion or a scored target, in tokens with EOS", default=128)
    option("batch_size", "inputs per batch, over all devices", default=16)
    option("temperature", "0 is greedy, above 0 samples", default=0.0)
    option("top_k", "sample from the k most probable ids; 0 is all", default=0)
    option("top_p", "sample from the most probable ids that hold this mass", default=1.0)
    option("samples", "completions per input", default=1)
    option("beams", "beam search that keeps the best --samples; 0 is none", default=0)
    option("length_penalty", "length penalty of the beam search; None is 0.6", default=None)
    option("seed", "PRNG seed of sampling", default=0)
    option("dtype", "None is bfloat16 on accelerators", default=None)
    option("score", "add the log-probabilities of the target's tokens", default=False)
    option("top_k_log_probs", "with --score, ids to keep per target token", default=None)
    option("model_parallelism", "devices that share a copy of the model", default=1)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `convert`."""

    def option(name: str, text: str, **how: Any) -> None:
        _option(parser, CONVERT, name, text, **how)

    option(
        "source", "a checkpoint of any format, or OWNER/NAME of the Hugging Face Hub", metavar="SRC"
    )
    option("target", "the new folder", metavar="DST")
    option("--to", "the format to write: gkd (a run directory, the default for a Hugging Face "
           "SRC), huggingface (the default otherwise), t5x (msgpack and zarr, which every T5X "
           "reads), t5x_orbax (as its checkpoint manager writes), peft (the adapters of a run with "
           "LORA; all others write the whole model)", default=None)  # fmt: skip
    option("--step", STEP_HELP, default=BEST_OR_NEWEST)
    option("--dtype", "convert the weights; else as in SRC", default=None)
    option("--vocabulary", "a sentencepiece model, or a folder with a tokenizer, to put beside the "
           "weights, or 'bytes'; else SRC's own", metavar="FILE", default=None)  # fmt: skip
    option("--keep_encoder_layers", "numbers of the encoder's layers to keep, from 0, such as "
           "0,2,5,7, for a student of the model's own layers; else all", metavar="N,N,…",
           default=None)  # fmt: skip
    option("--keep_decoder_layers", "the same of the decoder", metavar="N,N,…", default=None)


def add_new_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `new`."""

    def option(name: str, text: str, **how: Any) -> None:
        _option(parser, NEW, name, text, **how)

    option("directory", "the new folder of the run files and runs", metavar="DIR")
    option("--train", "a data file: .jsonl, .csv, .tsv, .parquet, …; what is missing is asked for "
           "on a terminal", metavar="FILE", default=None)  # fmt: skip
    option("--validation", "a data file; None holds out the last rows of --train, a tenth or 500",
           metavar="FILE", default=None)  # fmt: skip
    option("--input_field", "column of the inputs", metavar="COLUMN", default=None)
    option("--target_field", "column of the targets", metavar="COLUMN", default=None)
    option("--teacher", "a checkpoint, or OWNER/NAME of the Hugging Face Hub", metavar="MODEL",
           default=None)  # fmt: skip
    option("--student", "the same; or a model file, e.g. configs/models/cpu_student.gin, to start "
           "at random", metavar="MODEL", default=None)  # fmt: skip
    option("--prefix", "text before every input", default="")
    option("--metric", "metric that decides which checkpoint is best", default="rouge2")
    option("--steps", "length of each run", default=2000)
    option("--delimiter", "between the cells of CSV and TSV; None is by suffix", default=None)
    option("--tuned_teacher", "use the teacher as it is, without fine-tuning it first",
           default=False)  # fmt: skip


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `report`."""

    def option(name: str, text: str, **how: Any) -> None:
        _option(parser, REPORT, name, text, **how)

    option("directories", "run directories, a sweep's, or folders that hold some", metavar="DIR")
    option("--output", "the folder to write: report.html, figures/; None is `report` in the first "
           "DIR", metavar="FOLDER", default=None)  # fmt: skip
    option("--metric", "compares arms by this evaluation metric, e.g. rouge2; may be repeated; "
           "None takes the runs' BEST_METRIC", metavar="NAME", default=None)  # fmt: skip
    option("--baseline", "name of the arm that others are compared with; None is the first whose "
           "LAMBDA is 0, else the first",
           metavar="ARM", default=None)  # fmt: skip
    option("--examples", "prompts in the browser of samples", default=20)


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `plan`, besides its run's gin files."""

    def option(name: str, text: str, **how: Any) -> None:
        _option(parser, PLAN, f"--{name}", text, **how)

    option("topology", "v5e:16x16, 2*v5e:16x16 (two), cpu:8")
    option("mesh", "data:64,model:4; by default the run's MODEL_PARALLELISM", default=None)
    option("programs", "programs to compile, separated by commas", default=",".join(PROGRAMS))
    option("expected_length", "mean tokens per completion; by default the limit", default=None)
    option("price", "price of one chip-hour", default=None)
    option("lengths", "lengths of the training rows, for LENGTH_BUCKETS: 'data' reads them; a file "
           "of histograms in .json; or the inputs' mean; None plans for the greatest",
           metavar="data|FILE|MEAN", default=None)  # fmt: skip
    option("measured", "a saved run whose step time is put beside the estimate; by default the run "
           "file's MODEL_DIR, where it is one", metavar="DIR", default=None)  # fmt: skip
    option("search", "compile the step for every mesh and number of microbatches that divide; rank "
           "them", default=False)  # fmt: skip
    option("output", "a JSON file for all results", default=None)


ADD_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "infer": add_infer_arguments,
    "convert": add_convert_arguments,
    "new": add_new_arguments,
    "report": add_report_arguments,
    "plan": add_plan_arguments,
}

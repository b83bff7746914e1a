"""Tasks of problems that are made from a seed, without any file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gkd.data import prompts, sources
from gkd.data.task_spec import NUMBERS, TaskSpec, make_task, split_sizes
from gkd.metrics import metrics
from gkd.synthetic import retrieval as questions
from gkd.vocabularies import vocabularies
from gkd.vocabularies.white_space import rule_of


def retrieval(
    name: str = "retrieval",
    vocabulary: Any = None,
    rows: Mapping[str, int] | None = None,
    seed: int = 0,
    context: int = 32,
    evidence: int = 4,
    digits: int = 2,
    max_examples: int | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (metrics.final_answer,),
) -> TaskSpec:
    """Builds the task of finding one of many statements in a long context.

    Its rows also have the field `evidence`, the question with a short context, for a teacher's
    prompt (`gkd.data.teacher_inputs.template`, '{evidence}').

    Args:
      name: name in seqio's registry.
      vocabulary: a seqio vocabulary; by default the small one of the package.
      rows: number of questions of each split; by default 10000, 500 and 500.
      seed, context, evidence, digits: as in `gkd.synthetic.retrieval.questions`.
      max_examples: number of training rows to use, the first ones; None uses all.
      metric_fns: functions of (targets, predictions) to a dictionary.

    Returns:
      The record of the task.
    """
    sizes = split_sizes(rows, max_examples)

    def rows_of(split: str) -> list[dict[str, str]]:
        made = questions.questions(
            split, sizes[split], seed, context=context, evidence=evidence, digits=digits
        )
        return [question._asdict() for question in made]

    source = sources.rows_source(rows_of, ("input", "evidence", "target"), tuple(sizes))
    chosen = vocabulary or vocabularies.arithmetic()
    texts = prompts.text_to_text("input", "target", rule=rule_of(chosen))
    return make_task(name, source, texts, chosen, metric_fns, max_examples=max_examples, **NUMBERS)

"""PyTorch on rows of real lengths: rows grouped by length, each batch padded to its longest."""

from __future__ import annotations

import torch
import transformers
from transformers.trainer_pt_utils import LengthGroupedSampler

from benchmarks.real_lengths import padded, strata
from benchmarks.workers.pytorch_worker import config
from benchmarks.workers.strata_protocol import serve
from benchmarks.workloads import STUDENT, TEACHER

_IGNORED = -100
_STRATA = 5  # nearly every batch has a shape of its own


def make(rows, size, most):
    """The parts: sft; gkd. Batches are those of the Trainer with group_by_length."""
    inputs, targets = rows.texts()
    sampler = LengthGroupedSampler(
        size, lengths=rows.inputs.tolist(), generator=torch.Generator().manual_seed(0)
    )
    order = list(sampler)
    epoch = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
    shapes = [(size, rows.inputs[m].max(), rows.targets[m].max()) for m in epoch]
    tokens = [int(rows.tokens[members].sum()) for members in epoch]
    chosen = strata(shapes, [int(steps) for *_, steps in shapes], tokens, min(most, _STRATA))
    models = {}

    def of(architecture):
        if architecture not in models:
            torch.manual_seed(0)
            model = transformers.T5ForConditionalGeneration(config(architecture))
            models[architecture] = model.eval()  # there is no dropout
        return models[architecture]

    def runs(update, optimizer):
        def run_of(number):
            members, (_, source, target) = epoch[number], shapes[number]
            prompts, outputs = (
                torch.from_numpy(padded([column[row] for row in members], length)).long()
                for column, length in ((inputs, source), (targets, target))
            )

            def run():
                update(prompts, prompts.ne(0).long(), outputs)
                optimizer.step()
                optimizer.zero_grad()

            return run

        return [(stratum, run_of(stratum.batch)) for stratum in chosen]

    def sft():
        def update(prompts, mask, outputs):
            labels = outputs.masked_fill(outputs.eq(0), _IGNORED)
            of(STUDENT)(input_ids=prompts, attention_mask=mask, labels=labels).loss.backward()

        parameters = of(STUDENT).parameters()
        return runs(update, transformers.Adafactor(parameters, lr=1e-3, relative_step=False))

    def gkd():
        from trl import GKDTrainer

        def update(prompts, mask, outputs):
            ends = outputs.ne(0).sum(dim=1)
            with torch.no_grad():
                written = of(STUDENT).generate(
                    input_ids=prompts, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                    temperature=1.0, max_new_tokens=outputs.shape[1], pad_token_id=0,
                    logits_processor=transformers.LogitsProcessorList([_EndingAt(ends)]),
                )  # fmt: skip
            batch = {
                "input_ids": prompts, "attention_mask": mask, "decoder_input_ids": written[:, :-1],
            }  # fmt: skip
            labels = written[:, 1:].masked_fill(written[:, 1:].eq(0), _IGNORED)
            with torch.no_grad():
                teacher = of(TEACHER)(**batch).logits
            student = of(STUDENT)(**batch).logits
            GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta=0.5).backward()

        return runs(update, torch.optim.AdamW(of(STUDENT).parameters(), lr=1e-4))

    return {"sft": sft, "gkd": gkd}


class _EndingAt(transformers.LogitsProcessor):
    """Ends every row at a length of its own."""

    def __init__(self, ends):
        self._ends = ends

    def __call__(self, input_ids, scores):
        """Makes EOS certain for the rows that end with this token."""
        scores[:, 1] += torch.where(input_ids.shape[1] >= self._ends, 1e9, 0.0)
        return scores


if __name__ == "__main__":
    serve(make)

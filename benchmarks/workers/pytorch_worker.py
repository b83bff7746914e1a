"""PyTorch: transformers' T5 and its generate, TRL's generalised JSD, AdamW."""

from __future__ import annotations

import torch
import transformers

from benchmarks.workers.protocol import serve
from benchmarks.workloads import STUDENT, TEACHER, VOCABULARY


def make(work, prompts, targets):
    """The parts: sample; step."""
    prompts, targets = (torch.from_numpy(x).long() for x in (prompts, targets))
    models = {}

    def of(size):
        if size not in models:
            torch.manual_seed(0)
            models[size] = transformers.T5ForConditionalGeneration(config(size)).eval()
        return models[size]

    def sample():
        with torch.no_grad():
            written = of(STUDENT).generate(
                input_ids=prompts, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
                max_new_tokens=work.target, eos_token_id=None,
            )  # fmt: skip
        if written.shape[1] != work.target + 1:
            raise RuntimeError(f"generate wrote {written.shape[1]} tokens")
        return written

    optimizer = []

    def step():
        from trl import GKDTrainer

        inputs = sample()[:, :-1]
        with torch.no_grad():
            teacher = of(TEACHER)(input_ids=prompts, decoder_input_ids=inputs).logits
        student = of(STUDENT)(input_ids=prompts, decoder_input_ids=inputs).logits
        GKDTrainer.generalized_jsd_loss(student, teacher, beta=0.5).backward()
        if not optimizer:
            optimizer.append(torch.optim.AdamW(of(STUDENT).parameters(), lr=1e-4))
        optimizer[0].step()
        optimizer[0].zero_grad()

    return {"sample": sample, "step": step}


def config(size):
    """The architecture as transformers names it."""
    return transformers.T5Config(
        vocab_size=VOCABULARY, d_model=size.width, d_kv=size.head_dim, d_ff=size.mlp,
        num_layers=size.layers, num_decoder_layers=size.layers, num_heads=size.heads,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, dropout_rate=0.0,
        decoder_start_token_id=0,
    )  # fmt: skip


if __name__ == "__main__":
    serve(make)

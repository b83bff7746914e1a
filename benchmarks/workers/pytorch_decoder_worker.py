"""PyTorch: transformers' SmolLM2-135M and its generate, TRL's generalised JSD, AdamW."""

from __future__ import annotations

import torch
import transformers

from benchmarks.workers.protocol import serve
from benchmarks.workloads import CHATS


def make(work, prompts, targets):
    """The parts: sample and step, each also with a static cache and a compiled model."""
    del targets
    prompts = torch.from_numpy(prompts).long()
    mask, length = torch.ones_like(prompts), prompts.shape[1]
    models, optimizer = {}, []

    def of(name):
        if name not in models:
            torch.manual_seed(0)
            models[name] = transformers.LlamaForCausalLM(config()).eval()
        return models[name]

    def sample(compiled=False):
        student, options = of("student"), {}
        if compiled:
            options = {"cache_implementation": "static"}
            if "compiled" not in models:
                models["compiled"] = torch.compile(student.forward, dynamic=False)
            plain, student.forward = student.forward, models["compiled"]
        try:
            with torch.no_grad():
                written = student.generate(
                    input_ids=prompts, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0,
                    temperature=1.0, max_new_tokens=work_target, min_new_tokens=work_target,
                    eos_token_id=None, pad_token_id=0, **options,
                )  # fmt: skip
        finally:
            if compiled:
                student.forward = plain
        if written.shape[1] != length + work_target:
            raise RuntimeError(f"generate wrote {written.shape[1] - length} tokens")
        return written

    def step(compiled=False):
        from trl import GKDTrainer

        inputs = sample(compiled)[:, :-1]
        with torch.no_grad():
            teacher = of("teacher")(input_ids=inputs, logits_to_keep=work_target).logits
        student = of("student")(input_ids=inputs, logits_to_keep=work_target).logits
        GKDTrainer.generalized_jsd_loss(student, teacher, beta=0.5).backward()
        if not optimizer:
            optimizer.append(torch.optim.AdamW(of("student").parameters(), lr=1e-4))
        optimizer[0].step()
        optimizer[0].zero_grad()

    work_target = CHATS["chats"].target
    return {
        "sample": sample,
        "step": step,
        "compiled sample": lambda: sample(compiled=True),
        "compiled step": lambda: step(compiled=True),
    }


def config():
    """The architecture as transformers names it."""
    return transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, num_attention_heads=9, num_key_value_heads=3,
        intermediate_size=1536, num_hidden_layers=30, rope_theta=100000.0,
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, max_position_embeddings=8192,
    )  # fmt: skip


if __name__ == "__main__":
    serve(make, CHATS)

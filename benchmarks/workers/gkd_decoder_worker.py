"""GKD's own step and its parts with SmolLM2-135M as student and as teacher."""

from __future__ import annotations

import numpy as np

from benchmarks.workers.gkd_worker import parts_of
from benchmarks.workers.protocol import serve
from benchmarks.workloads import CHATS
from gkd.decoders.decoder_only import DecoderConfig
from gkd.decoders.rotary import Rope

CONFIG = DecoderConfig(
    vocab_size=49152, emb_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
    num_layers=30, rope=Rope(100000.0), qk_norms=False, logits_via_embedding=True, end_ids=(2,),
)  # fmt: skip


def make(work, prompts, targets):
    """The parts: sample, step and supervised."""
    del work
    usable = np.ones(CONFIG.vocab_size, bool)
    return parts_of(CONFIG.build(), CONFIG.build(), usable, prompts, targets)


if __name__ == "__main__":
    serve(make, CHATS)

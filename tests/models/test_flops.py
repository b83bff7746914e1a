"""FLOPs of T5-small in closed form, against multiplications counted by hand."""

import pytest

from gkd.models import flops
from gkd.models.flops import ShardCounts
from gkd.models.t5 import T5Config

# Widths of T5 v1.1 small.
SMALL = T5Config(
    vocab_size=32128, emb_dim=512, num_heads=6, head_dim=64, mlp_dim=1024, num_encoder_layers=8,
    num_decoder_layers=8, mlp_activations=("gelu", "linear"),
).sizes  # fmt: skip


def test_one_prompt_of_one_token():
    """Four attention kernels of 512×384, two products with one position, three of 512×1024."""
    layer = 4 * 512 * 384 + 2 * 384 + 3 * 512 * 1024
    assert flops.encoder_flops(SMALL, 1, 1) == 2 * 8 * layer
    assert flops.cross_flops(SMALL, 1, 1) == 2 * 8 * 2 * 512 * 384
    assert flops.head_flops(SMALL, 1, 1) == 2 * 512 * 32128
    layer = 6 * 512 * 384 + 2 * 384 * 5 + 3 * 512 * 1024
    assert flops.decoder_flops(SMALL, 1, 1, attended=5) == 2 * 8 * layer


def test_work_grows_with_rows_and_is_divided_among_chips():
    whole = flops.head_flops(SMALL, 16, 7)
    assert whole == 16 * 7 * flops.head_flops(SMALL, 1, 1)
    assert flops.head_flops(SMALL, 16, 7, ShardCounts(rows=4, vocab=2)) == whole / 8
    halves = flops.encoder_flops(SMALL, 16, 7, ShardCounts(heads=2, mlp=2))
    assert halves == pytest.approx(flops.encoder_flops(SMALL, 16, 7) / 2)

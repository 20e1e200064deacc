"""Named model sizes: one table of Llama-3-style shapes, named by their non-embedding parameters.

The large shapes keep a head size of 64 to 128 and a feed-forward width of about 8/3 of the hidden size, rounded to
the hardware's liking, as Llama 3 does; the small ones exist so that a whole study runs on two CPU cores.
"""

from __future__ import annotations

from synth.errors import UserError
from train.config import ModelConfig

SIZES: dict[str, ModelConfig] = {
    name: ModelConfig(num_layers=layers, hidden_size=hidden, num_heads=heads, num_kv_heads=kv, intermediate_size=ff)
    for name, (layers, hidden, heads, kv, ff) in {
        "12k": (1, 32, 2, 1, 96),
        "25k": (2, 32, 2, 2, 88),
        "49k": (1, 64, 4, 4, 168),
        "98k": (2, 64, 4, 4, 168),
        "197k": (4, 64, 4, 4, 168),
        "330k": (3, 96, 4, 4, 248),
        "780k": (4, 128, 4, 4, 340),
        "4.7m": (6, 256, 8, 8, 688),
    }.items()
}

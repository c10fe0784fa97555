"""The least time of one DDPM step of the CIFAR-10 UNet, by operations and bytes and a card's published peaks.

    python scripts/roofline.py

Nothing is measured: the network runs on meta tensors, every operator's operations and bytes are counted
(fastddpm_bench.costs), and each takes the longer of its operations at peak rate and its bytes at peak
bandwidth. What the kernels fuse is counted as fused: a norm with its activation and the bias before it reads
a map and writes one, the reverse step moves x twice in float32 and reads the output in bfloat16.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F

from fastddpm import UNet
from fastddpm.unet import diffusers
from fastddpm_bench.costs import OpCost, watched

CARDS = {"A100": (312e12, 2.039e12), "H100": (989.4e12, 3.35e12)}
"""Dense bfloat16 FLOP/s and bytes/s of the SXM cards of 80 GB: NVIDIA's data sheets."""

BATCHES = (1, 16, 64, 256)
CONFIG = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
"""config.json of google/ddpm-cifar10-32."""

KINDS = {
    "convolution": "convolutions",
    "addmm": "matrix products",
    "mm": "matrix products",
    "native_group_norm": "group_norm_silu",
    "_scaled_dot_product_flash_attention": "attention",
}
FUSED = {"silu", "add_bias"}
"""What costs nothing of its own: it happens in another kernel's pass."""


def flash(query, key, value):
    """What attention dispatches to on a card in half precision."""
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def step_costs(batch: int) -> list[OpCost]:
    """Every operator of a step, the time path aside: it is tabulated once per chain."""
    with torch.device("meta"):
        unet = UNet(diffusers.config(CONFIG)).eval().bfloat16()
        x = torch.empty(batch, 3, 32, 32, dtype=torch.bfloat16)
        bias = torch.empty(1, unet.bias_width, dtype=torch.bfloat16)
    attention = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = flash
    try:
        costs = [fused(op) for op in watched(lambda: unet.forward_biased(x, bias))]
    finally:
        F.scaled_dot_product_attention = attention
    numel = x.numel()
    return [*costs, OpCost("reverse_step", 0, numel * (4 + 2 + 4), tuple(x.shape))]


def fused(op: OpCost) -> OpCost:
    """An operator's cost where the kernels of a card fuse it."""
    numel = 1
    for size in op.shape:
        numel *= size
    if op.name == "native_group_norm":
        return OpCost(op.name, 0, 2 * 2 * numel, op.shape)
    # A residual reads two maps and writes one; a bias per channel reads one, in a norm's pass.
    if op.name in FUSED or (op.name == "add" and op.bytes < 3 * 2 * numel):
        return OpCost("add_bias", 0, 0, op.shape)
    return op


def by_kind(costs: list[OpCost]) -> dict[str, list[OpCost]]:
    """Operators by the kernels that run them."""
    kinds: dict[str, list[OpCost]] = defaultdict(list)
    for op in costs:
        if op.flops or op.bytes:
            name = (
                op.name
                if op.name == "reverse_step"
                else KINDS.get(op.name, "other (adds, copies, upsampling)")
            )
            kinds[name].append(op)
    return kinds


def least(costs: list[OpCost], card: str) -> float:
    """Seconds that no implementation of these operators, one after the other, can be below."""
    peak, bandwidth = CARDS[card]
    return sum(max(op.flops / peak, op.bytes / bandwidth) for op in costs)


def main() -> None:
    """Prints Markdown tables."""
    print("| batch | kernels | calls | GFLOP | MB | A100, least us | H100, least us |")
    print("| --- " * 7 + "|")
    for batch in BATCHES:
        costs = step_costs(batch)
        for name, ops in (*by_kind(costs).items(), ("**step**", costs)):
            gflop, megabytes = sum(op.flops for op in ops) / 1e9, sum(op.bytes for op in ops) / 1e6
            calls = sum(bool(op.flops or op.bytes) for op in ops)
            times = " | ".join(f"{least(ops, card) * 1e6:.1f}" for card in CARDS)
            print(f"| {batch} | {name} | {calls} | {gflop:.2f} | {megabytes:.1f} | {times} |")


if __name__ == "__main__":
    main()

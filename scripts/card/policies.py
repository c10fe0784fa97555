"""One chunk of a diffusion policy, batch 1: the published loop, eager and compiled, beside ours.

    python scripts/card/policies.py OUT [--seconds N] [--tiny]

Cases and contestants are those of benchmarks/policy.py, sizes of PushT and of LeRobot, 10 and 100 steps.
Chunks are timed one by one, as a robot asks for them. Differences are of float32 without TF32, from the same
seed, of networks with random weights; times are with torch's settings as they come.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from watch import Watch, differences
from workload import Part, arguments

import policy
from fastddpm.precision import forced

MOST = {10: 200, 100: 60}
"""Chunks that are timed of a case; of few, p99 is the slowest."""


def main() -> None:
    """Measures, case by case: first what takes seconds to begin, then what is compiled."""
    args = arguments(__doc__, seconds={"type": float, "default": 40.0})
    watch = Watch(Part("policies", args.out), args.seconds, args.device)
    engines, cases = ["cudagraph", "compile"], [("pusht", 10), ("pusht", 100), ("lerobot", 10)]
    if args.tiny:
        policy.SIZES["tiny"] = {"down_dims": (16, 32), "diffusion_step_embed_dim": 16}
        engines, cases = ["eager"], [("tiny", 2)]
    observations = torch.randn(1, policy.OBS_STEPS, policy.OBS_DIM, device=args.device)
    originals: dict[tuple[str, int], torch.Tensor] = {}
    for engine, (size, steps) in itertools.product(engines, cases):
        for name, made in policy.contestants(policy.Case(size, steps), [engine], args.device):
            if name == "original" and (size, steps) in originals:
                continue

            def figures(
                made: Any = made, name: str = name, case: tuple[str, int] = (size, steps)
            ) -> dict[str, Any]:
                call = policy.chunk(made, observations)
                torch.manual_seed(7)
                with forced("highest"):
                    actions = call()
                for _ in range(3):
                    call()
                taken = watch.seconds_of(call, most=MOST.get(case[1], 3), together=3.0)
                half, most = (1e3 * float(np.quantile(taken, share)) for share in (0.5, 0.99))
                if name == "original":
                    originals[case] = actions
                apart = differences(actions, originals[case]) if case in originals else {}
                return {"p50_ms": half, "p99_ms": most, "chunks": len(taken), **apart}

            row = {"name": name, "ours": name.startswith("ours"), "case": f"{size}, {steps} steps"}
            watch.measure(row, figures)
        torch._dynamo.reset()


if __name__ == "__main__":
    main()

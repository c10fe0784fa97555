"""One chunk of a diffusion policy, batch 1: the published loop and network beside ours.

    python benchmarks/policy.py [--sizes small,pusht,lerobot] [--steps 10,100]
        [--engines eager,onnxruntime,compile] [--seconds 60] [--out benchmarks/results/policy.json]

The published networks are restated (`fastddpm_bench.peers.policy_unets`), with random weights; their loop is
diffusers': DDPM of 100 steps, or DDIM of 10. ``original, compiled`` has torch.compile compile the network
alone, as LeRobot's ``compile_model`` does. Contestants of a case take turns; each chunk is one sample. Before
any is timed its actions are compared with the original's from the same seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler

import fastddpm
from fastddpm.checks import BadArgument
from fastddpm.files import replacing
from fastddpm.timing import Effort, interleaved, make_clock
from fastddpm_bench.machine import describe
from fastddpm_bench.peers import diffusion_policy, policy_unets
from fastddpm_bench.statistics import ratio_of_medians

SIZES: dict[str, dict[str, Any]] = {
    "small": {"down_dims": (64, 128, 256), "diffusion_step_embed_dim": 128},
    "pusht": {"down_dims": (256, 512, 1024), "diffusion_step_embed_dim": 256},
    "lerobot": {"down_dims": (512, 1024, 2048), "diffusion_step_embed_dim": 128},
}
"""Small; diffusion_policy's of low-dimensional PushT; LeRobot's defaults."""
HORIZON, OBS_STEPS, OBS_DIM, ACTION_DIM = 16, 2, 20, 2
SAME = 1e-4
"""Of actions in [-1, 1], before anything is timed: 100 steps of an untrained network."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What all contestants of a contest draw.

    Attributes:
        size: of `SIZES`.
        steps: of DDPM where they are 100, else of DDIM.
    """

    size: str
    steps: int

    def policy(self) -> diffusion_policy.LowdimPolicy:
        """The published policy, of one seed's weights."""
        torch.manual_seed(0)
        network = policy_unets.ConditionalUnet1D(
            ACTION_DIM,
            global_cond_dim=OBS_STEPS * OBS_DIM,
            kernel_size=5,
            n_groups=8,
            cond_predict_scale=True,
            **SIZES[self.size],
        )
        kind = DDPMScheduler if self.steps == 100 else DDIMScheduler
        scheduler = kind(100, beta_schedule="squaredcos_cap_v2", clip_sample=True, prediction_type="epsilon")
        return diffusion_policy.LowdimPolicy(
            network, scheduler, HORIZON, OBS_DIM, ACTION_DIM, OBS_STEPS, self.steps
        ).eval()


def contestants(case: Case, engines: list[str], device: torch.device) -> Iterator[tuple[str, Any]]:
    """Policies by name, around the same weights."""
    original = case.policy().to(device)
    yield "original", original
    if "compile" in engines:
        compiled = case.policy().to(device)
        compiled.model.load_state_dict(original.model.state_dict())
        compiled.model.compile()
        yield "original, compiled", compiled
    for engine in engines:
        yield f"ours, {engine}", fastddpm.optimize(original, engine=engine)


def chunk(policy: Any, observations: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Draws one chunk of actions."""

    def drawn() -> torch.Tensor:
        with torch.no_grad():
            actions: torch.Tensor = policy.predict_action({"obs": observations})["action_pred"]
        return actions

    return drawn


def measured(case: Case, engines: list[str], seconds: float, device: torch.device) -> dict[str, Any]:
    """Milliseconds a chunk of every contestant: p50, p99, and the ratio of medians to the original's.

    Raises:
        RuntimeError: actions that are not the original's.
    """
    seed = torch.Generator().manual_seed(1)
    observations = torch.randn(1, OBS_STEPS, OBS_DIM, generator=seed).to(device)
    calls, differences, wanted = {}, {}, torch.empty(0)
    for name, policy in contestants(case, engines, device):
        calls[name] = chunk(policy, observations)
        torch.manual_seed(7)
        actions = calls[name]()
        wanted = actions if name == "original" else wanted
        differences[name] = float((actions - wanted).abs().max())
        if not differences[name] <= SAME:
            raise RuntimeError(f"{case}, {name}: actions differ by {differences[name]:.1e}")
    times = interleaved(calls, make_clock(device), Effort(seconds, least=5, most=2000, warm_up=1))
    theirs = times["original"].wall
    return {
        name: {
            "p50_ms": 1e3 * statistics.median(found.wall),
            "p99_ms": 1e3 * float(np.quantile(found.wall, 0.99)),
            "chunks": len(found.wall),
            "to_original": dataclasses.asdict(ratio_of_medians(found.wall, theirs)),
            "difference": differences[name],
        }
        for name, found in times.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Measures the cases, prints them, and writes them where ``--out`` says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--steps", default="10,100")
    parser.add_argument(
        "--engines", help="of ours; eager, onnxruntime and compile, on a GPU cudagraph and compile"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each case")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    usual = "cudagraph,compile" if device.type == "cuda" else "eager,onnxruntime,compile"
    engines, found = (chosen.engines or usual).split(","), {}
    for size in chosen.sizes.split(","):
        if size not in SIZES:
            raise BadArgument("--sizes", size, ", ".join(SIZES))
        for steps in map(int, chosen.steps.split(",")):
            torch._dynamo.reset()
            case = measured(Case(size, steps), engines, chosen.seconds, device)
            found[f"{size}, {steps} steps"] = case
            print(f"{size}, {steps} steps")
            for name, one in case.items():
                print(
                    f"  {name:20} p50 {one['p50_ms']:9.2f} ms  p99 {one['p99_ms']:9.2f} ms  "
                    f"{one['to_original']['value']:.2f} of the original  ({one['chunks']} chunks)"
                )
    if chosen.out is not None:
        about = {"machine": describe(device), "threads": torch.get_num_threads(), "cases": found}
        with replacing(chosen.out) as path:
            path.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()

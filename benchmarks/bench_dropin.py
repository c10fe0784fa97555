"""Drop-ins against the objects they replace: same weights, seeds and images, interleaved in one run.

    OMP_NUM_THREADS=1 python benchmarks/bench_dropin.py [--peers diffusers-ddpm sr3 ...] [--rounds 15]

Needs `pip install -e '.[test]'`. diffusers and lucidrains are the packages themselves; abarankab and SR3 are
the restatements in tests/ that the golden files hold. Networks of about 1.5 M parameters, batch 8. Before
anything is timed the images are compared (1e-4). Ratios of medians of wall time, below 1 is faster than the
original, with a 95 % bootstrap interval over the rounds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastddpm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

BATCH = 8
STEPS = 10
Draw = Callable[[Any], Tensor]


def diffusers_ddpm() -> tuple[Any, Draw]:
    """DDPMPipeline on a UNet2DModel of 32x32 colour images."""
    pipeline = _diffusers("DDPMPipeline", "DDPMScheduler")
    return pipeline, _pipeline_images


def diffusers_ddim() -> tuple[Any, Draw]:
    """DDIMPipeline, eta 0."""
    pipeline = _diffusers("DDIMPipeline", "DDIMScheduler")
    return pipeline, _pipeline_images


def lucidrains() -> tuple[Any, Draw]:
    """GaussianDiffusion of denoising-diffusion-pytorch, DDIM."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    unet = Unet(24, dim_mults=(1, 2, 4), flash_attn=False)
    diffusion = GaussianDiffusion(unet, image_size=32, timesteps=1000, sampling_timesteps=STEPS)
    return diffusion.eval(), lambda obj: obj.sample(batch_size=BATCH)


def abarankab() -> tuple[Any, Draw]:
    """GaussianDiffusion of abarankab/DDPM, class-conditional, all steps of a short chain."""
    import peers_abarankab as peer

    network = peer.Network(
        3,
        40,
        channel_mults=(1, 2),
        num_res_blocks=2,
        num_classes=10,
        attention_resolutions=(1,),
        num_groups=8,
        time_emb_dim=128,
    )
    diffusion = peer.Diffusion(network, (32, 32), 3, peer.linear_betas(STEPS)).eval()
    labels = torch.arange(BATCH)
    return diffusion, lambda obj: obj.sample(BATCH, "cpu", labels)


def sr3() -> tuple[Any, Draw]:
    """GaussianDiffusion of the SR3 repository, all steps of a short chain."""
    import peers_sr3 as peer

    network = peer.Network("sr3", 6, 3, 40, norm_groups=8, channel_mults=(1, 2), attn_res=(16,), res_blocks=2)
    diffusion = peer.Diffusion(network, 32, 3, kind="sr3")
    diffusion.set_betas(peer.betas_of("linear", STEPS, 1e-4, 0.4))
    condition = torch.rand(BATCH, 3, 32, 32) * 2 - 1
    # The last frame of the whole batch.
    return diffusion.eval(), lambda obj: obj.super_resolution(condition, continous=True)[-BATCH:]


PEERS: dict[str, Callable[[], tuple[Any, Draw]]] = {
    "diffusers-ddpm": diffusers_ddpm,
    "diffusers-ddim": diffusers_ddim,
    "lucidrains": lucidrains,
    "abarankab": abarankab,
    "sr3": sr3,
}


def _diffusers(pipeline: str, scheduler: str) -> Any:
    import diffusers

    unet = diffusers.UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )
    built = getattr(diffusers, pipeline)(unet.eval(), getattr(diffusers, scheduler)())
    built.set_progress_bar_config(disable=True)
    return built


def _pipeline_images(pipeline: Any) -> Tensor:
    output = pipeline(batch_size=BATCH, num_inference_steps=STEPS, output_type="np")
    return torch.tensor(output.images)


def parameters(original: Any) -> float:
    """Millions of parameters of the network that is sampled from."""
    network = next(
        getattr(original, name)
        for name in ("unet", "denoise_fn", "ema_model", "model")
        if hasattr(original, name)
    )
    return sum(p.numel() for p in network.parameters()) / 1e6


def compare(name: str, engines: list[str], rounds: int) -> list[str]:
    """Markdown rows of one peer, one for each engine."""
    torch.manual_seed(0)
    original, draw = PEERS[name]()
    contestants = {
        "original": original,
        **{e: fastddpm.optimize(original, engine=e) for e in engines},
    }
    expected = _seeded(draw, original)
    for contestant in contestants.values():
        for _ in range(2):
            difference = (_seeded(draw, contestant) - expected).abs().max().item()
        if difference > 1e-4 * max(1.0, expected.abs().max().item()):
            raise SystemExit(f"{name}: images differ by {difference}")
    times: dict[str, list[float]] = {key: [] for key in contestants}
    for _ in range(rounds):
        for key, contestant in contestants.items():
            began = time.perf_counter()
            _seeded(draw, contestant)
            times[key].append(time.perf_counter() - began)
    theirs = np.array(times["original"])
    rows = []
    for engine in engines:
        ratio, low, high = ratio_of_medians(np.array(times[engine]), theirs)
        cells = [name, f"{parameters(original):.2f} M", engine, f"{1000 * np.median(theirs) / STEPS:.1f} ms"]
        rows.append(f"| {' | '.join(cells)} | {ratio:.2f} | {low:.2f} to {high:.2f} |")
    return rows


def _seeded(draw: Draw, contestant: Any) -> Tensor:
    torch.manual_seed(1)
    return draw(contestant)


def ratio_of_medians(ours: np.ndarray, theirs: np.ndarray, draws: int = 4000) -> tuple[float, float, float]:
    """median(ours) / median(theirs), and its 95 % interval by resampling rounds."""
    chosen = np.random.default_rng(0).integers(0, len(ours), (draws, len(ours)))
    ratios = np.median(ours[chosen], axis=1) / np.median(theirs[chosen], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(ours) / np.median(theirs)), float(low), float(high)


def main() -> None:
    """Times from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--engines", nargs="+", default=["eager", "compile"])
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}, {STEPS} steps")
    print("| peer | network | engine | original, a step | ratio | 95 % interval |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in args.peers:
        for row in compare(name, args.engines, args.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()

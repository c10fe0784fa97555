"""Drop-ins of other libraries beside these themselves: the same images, and what a step takes.

    python scripts/card/dropins.py OUT [--seconds N] [--tiny]

diffusers' ScoreSdeVe and KarrasVe pipelines, lucidrains' GaussianDiffusion and guided-diffusion's, with
random weights, 32x32 pixels. Differences are of float32 without TF32, from the same seed, as a share of the
largest value; times are with torch's settings as they come. A pipeline's steps are those it is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from watch import Watch, differences, per_step
from workload import Part, arguments

import fastddpm
from fastddpm.precision import forced


@dataclasses.dataclass(frozen=True)
class Peer:
    """An object of a library.

    Attributes:
        name: of the row.
        obj: as the library has it.
        draw: draws images by it or by its drop-in.
    """

    name: str
    obj: Any
    draw: Callable[[Any], Tensor]


@dataclasses.dataclass(frozen=True)
class Size:
    """Of what is drawn: images, steps, the networks' narrowest width, pixels of a side."""

    batch: int
    steps: int
    width: int
    pixels: int


def pipelines(size: Size, device: torch.device) -> Iterator[Peer]:
    """diffusers' pipelines whose states keep all their noise."""
    import diffusers

    widths = (size.width, 2 * size.width)
    for name, options in (("ScoreSdeVe", {"snr": 0.05}), ("KarrasVe", {"s_churn": 3.0, "s_max": 1.0})):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            sample_size=size.pixels,
            layers_per_block=1,
            block_out_channels=widths,
            norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )
        scheduler = getattr(diffusers, f"{name}Scheduler")(sigma_max=2.0, **options)
        pipeline = getattr(diffusers, f"{name}Pipeline")(unet.eval().to(device), scheduler)
        pipeline.set_progress_bar_config(disable=True)

        def draw(one: Any) -> Tensor:
            one.set_progress_bar_config(disable=True)
            images = one(batch_size=size.batch, num_inference_steps=size.steps, output_type="np").images
            return torch.as_tensor(images)

        yield Peer(f"diffusers, {name}", pipeline, draw)


def lucidrains(size: Size, device: torch.device) -> Iterator[Peer]:
    """denoising-diffusion-pytorch, by DDIM."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet  # type: ignore[import-untyped]

    torch.manual_seed(0)
    unet = Unet(size.width, dim_mults=(1, 2), flash_attn=False)
    options = {"image_size": size.pixels, "timesteps": 1000, "sampling_timesteps": size.steps}
    diffusion = GaussianDiffusion(unet, **options).eval().to(device)
    yield Peer("lucidrains, ddim", diffusion, lambda one: one.sample(batch_size=size.batch).cpu())


class GroupNorm32(nn.GroupNorm):
    """As of guided-diffusion's nn.py, by whose name it is known."""

    def forward(self, x: Tensor) -> Tensor:
        """In float32."""
        return super().forward(x.float()).type(x.dtype)


def guided(size: Size, device: torch.device) -> Iterator[Peer]:
    """guided-diffusion, restated."""
    from fastddpm_bench.peers import guided_diffusion as peer
    from fastddpm_bench.peers.guided_unet import UNetModel

    torch.manual_seed(0)
    network = UNetModel(width=size.width, attention=(1,)).eval().to(device)
    for part in network.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = GroupNorm32
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)  # zeros where theirs begins
    diffusion = peer.GaussianDiffusion(
        betas=np.linspace(0.01, 0.3, size.steps),
        model_mean_type=peer.ModelMeanType["EPSILON"],
        model_var_type=peer.ModelVarType["LEARNED_RANGE"],
    )
    shape = (size.batch, 3, size.pixels, size.pixels)
    yield Peer("guided-diffusion", diffusion, lambda one: one.p_sample_loop(network, shape).cpu())


def main() -> None:
    """Measures, library by library; one that is not installed is a row too."""
    args = arguments(__doc__, seconds={"type": float, "default": 40.0})
    watch = Watch(Part("dropins", args.out), args.seconds, args.device)
    size, engine = Size(16, 20, 64, 32), "auto"
    if args.tiny:
        size = Size(2, 2, 32, 8)
    for library in (pipelines, lucidrains, guided):
        try:
            peers = list(library(size, args.device))
        except ImportError as reason:
            watch.part.add({"name": library.__name__, "error": str(reason)})
            continue
        for peer in peers:
            wanted: list[Tensor] = []
            for ours in (False, True):

                def figures(peer: Peer = peer, ours: bool = ours, wanted: Any = wanted) -> dict[str, Any]:
                    one = fastddpm.optimize(peer.obj, engine=engine) if ours else peer.obj
                    torch.manual_seed(3)
                    with forced("highest"):
                        wanted.append(peer.draw(one))
                    peer.draw(one)
                    found = per_step(watch.seconds_of(lambda: peer.draw(one)), size.steps)
                    return {**found, **differences(wanted[-1], wanted[0])}

                words = f"{peer.name}, {'optimize' if ours else 'as it is'}"
                watch.measure({"name": words, "ours": ours, "batch": size.batch}, figures)


if __name__ == "__main__":
    main()

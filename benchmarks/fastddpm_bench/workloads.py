"""Networks that contests share: the model in the box, and the architectures of diffusers' DDPMs."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Literal

import torch
from torch import Tensor

from fastddpm.checkpoint import load
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet
from fastddpm.unet import diffusers as dialect


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """A network and the images that it makes.

    Attributes:
        name: with its size.
        shape: ``(C, H, W)``.
        options: of ``UNet2DModel``, weights random; None for the model in the box.
        needs_gpu: too large for a CPU.
        schedule_name: what it was trained with, 1000 steps.
        prediction_type: what it predicts.
    """

    name: str
    shape: tuple[int, int, int]
    options: dict[str, Any] | None = None
    needs_gpu: bool = False
    schedule_name: Literal["linear", "cosine"] = "linear"
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    @property
    def schedule(self) -> NoiseSchedule:
        """Of the forward process."""
        return schedule(self.schedule_name)

    def unet(self, device: torch.device) -> UNet:
        """Our network, float32, in eval mode, contiguous: layouts are the contestants' choice."""
        if self.options is None:
            return unconditional_mnist().to(device)
        torch.manual_seed(0)
        return UNet(dialect.config(self.options)).eval().to(device)

    def unet2d(self, unet: UNet) -> Any:
        """diffusers' ``UNet2DModel`` with the weights of ours.

        Raises:
            ImportError: diffusers is not installed.
        """
        return unet2d(unet, self.shape)


def _ddpm_options(widths: tuple[int, ...], attention: int, size: int) -> dict[str, Any]:
    """config.json of google/ddpm-*: every level two blocks deep, attention on one level."""
    down = ["AttnDownBlock2D" if level == attention else "DownBlock2D" for level in range(len(widths))]
    up = ["AttnUpBlock2D" if kind.startswith("Attn") else "UpBlock2D" for kind in reversed(down)]
    return {
        "sample_size": size,
        "block_out_channels": widths,
        "layers_per_block": 2,
        "down_block_types": down,
        "up_block_types": up,
        "norm_eps": 1e-6,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "attention_head_dim": None,
    }


# What its chains draw are digits: with another prediction or schedule it is no denoiser, and rounding errors
# grow a thousandfold over a hundred steps.
MNIST = Workload("mnist 28x28, 1.1 M", (1, 28, 28), schedule_name="cosine", prediction_type="v_prediction")
CIFAR10 = Workload(
    "cifar10 32x32, 35.7 M", (3, 32, 32), _ddpm_options((128, 256, 256, 256), attention=1, size=32)
)
PIXELS_64 = Workload(
    "64x64, 83.0 M",
    (3, 64, 64),
    _ddpm_options((128, 256, 384, 512), attention=2, size=64),
    needs_gpu=True,
)
PIXELS_256 = Workload(
    "256x256, 113.7 M",
    (3, 256, 256),
    _ddpm_options((128, 128, 256, 256, 512, 512), attention=4, size=256),
    needs_gpu=True,
)
# The bundled super-resolution network's levels on one of its tiles, without the tile that it is given besides: an
# unconditional chain, which diffusers' pipelines can run.
PHOTO = Workload(
    "photo 128x128, 0.6 M",
    (3, 128, 128),
    {
        "sample_size": 128,
        "block_out_channels": (16, 32, 64),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * 3,
        "up_block_types": ["UpBlock2D"] * 3,
        "norm_num_groups": 8,
        "add_attention": False,
        "attention_head_dim": None,
    },
)
WORKLOADS = (MNIST, CIFAR10, PIXELS_64, PIXELS_256)


def unconditional_mnist() -> UNet:
    """The model in the box for no class, as a network without classes: the same function.

    The null class's row is added to each block's bias of the time projection, so that ``UNet2DModel``, which
    has no class per block, can hold it.
    """
    unet = load("mnist", device="cpu").model
    assert isinstance(unet, UNet)
    null = unet.config.num_classes
    assert null is not None
    config = dataclasses.replace(unet.config, num_classes=None, null_class=False)
    plain = UNet(config)
    state = {name: value for name, value in unet.state_dict().items() if "class_embed" not in name}
    plain.load_state_dict({name: value.contiguous() for name, value in state.items()})
    with torch.no_grad():
        for block, embedded in zip(plain.residual_blocks, unet.residual_blocks, strict=True):
            assert embedded.class_embed is not None
            block.time_proj.bias.add_(embedded.class_embed.weight[null])
    return plain.eval()


def unet2d(unet: UNet, shape: tuple[int, int, int]) -> Any:
    """diffusers' ``UNet2DModel`` with the weights of our network."""
    from diffusers import UNet2DModel

    options = dialect.their_config(unet.config)
    kind: Any = UNet2DModel
    theirs = kind(**{**options, "sample_size": shape[-1]})
    theirs.load_state_dict(dialect.their_state_dict(unet))
    return theirs.eval().to(next(unet.parameters()).device)


@functools.cache
def schedule(name: Literal["linear", "cosine"]) -> NoiseSchedule:
    """That of the DDPM checkpoints, or that of the model in the box; 1000 steps."""
    return NoiseSchedule.linear() if name == "linear" else NoiseSchedule.cosine()


def noise(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    """Standard normals from a seed, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)

"""The switch that puts `group_norm_silu` into networks of other libraries: `fuse_norms` and its undoing.

Recognised by what modules hold: a residual block with ``norm1 conv1 time_emb_proj norm2 conv2`` (diffusers'
ResnetBlock2D); a GroupNorm before a SiLU in a Sequential (SR3's Block), and ``conv_norm_out`` before
``conv_act`` (the end of diffusers' UNets); any other GroupNorm, alone (that of attention). Only the
``forward`` of instances changes: modules, parameters and their names stay as they are.

On CUDA the fused kernels run; elsewhere the same operations as before, in the same order.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from types import MethodType
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastddpm.precision import forced
from fastddpm.signatures import checked
from fastddpm.unet import UNet
from fastddpm_kernels import group_norm_silu
from fastddpm_kernels.compat import runs_kernels

if TYPE_CHECKING:
    from typing import TypeGuard

    class ResidualBlock(nn.Module):
        """diffusers' ResnetBlock2D, as far as it is called here."""

        norm1: nn.GroupNorm
        conv1: nn.Conv2d
        time_emb_proj: nn.Linear
        norm2: nn.GroupNorm
        conv2: nn.Conv2d
        dropout: nn.Dropout
        nonlinearity: nn.Module
        upsample: nn.Module | None
        downsample: nn.Module | None
        conv_shortcut: nn.Module | None
        skip_time_act: bool
        time_embedding_norm: str
        output_scale_factor: float


TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Of a replaced module against itself, relative to its largest value: a few roundings of its dtype."""

Replacement = tuple[dict[nn.Module, Callable[..., Tensor]], Callable[[], Tensor]]
"""New forwards of modules that belong together, and a call that runs them on random input."""


class FusedNorms:
    """What `fuse_norms` replaced, by the modules' names in ``replaced``, and the way back."""

    def __init__(self) -> None:
        self.replaced: list[str] = []
        self._modules: list[nn.Module] = []

    def replace(self, name: str, module: nn.Module, forward: Callable[..., Tensor]) -> None:
        # A bound method, so that a deep copy of the network runs on its own weights.
        module.forward = MethodType(forward, module)
        self._modules.append(module)
        self.replaced.append(name)

    def undo(self) -> None:
        """Every module runs as it did before. A second call does nothing."""
        for module in self._modules:
            del module.forward
        self._modules, self.replaced = [], []


@checked
def fuse_norms(model: nn.Module) -> FusedNorms:
    """GroupNorm, with the SiLU and the time embedding around it, as one kernel each; the network is changed.

    Args:
        model: a network. Its weights, their names and its mode stay as they are. Norms with hooks or with a
            ``forward`` of their own are left alone. In our own UNet the kernels are built in, and nothing is
            replaced.

    Returns:
        The handle whose ``undo()`` restores the network, and whose ``replaced`` names the modules.

    Raises:
        RuntimeError: a replaced module does not give the output that it gave before, on random input; the
            network is then as it was.
    """
    fused = FusedNorms()
    if isinstance(model, UNet):
        return fused
    names = {module: name for name, module in model.named_modules()}
    try:
        for forwards, run in _replacements(model):
            expected = _run(forwards, run)
            for module, forward in forwards.items():
                fused.replace(names[module], module, forward)
            if not _agree(_run(forwards, run), expected):
                where = " and ".join(names[module] or "the network" for module in forwards)
                raise RuntimeError(f"{where}: another output once fused; the network is left as it was")
    except BaseException:
        fused.undo()
        raise
    return fused


def _replacements(model: nn.Module) -> Iterator[Replacement]:
    # Not `children()`, which leaves out a module's second place.
    places = Counter(child for module in model.modules() for child in module._modules.values())
    modules = list(model.modules())
    taken: set[nn.Module] = set()
    for module in modules:
        if _is_residual_block(module):
            taken |= {module.norm1, module.norm2}
            yield {module: _residual_block}, _on_random_input(module)
    # guided-diffusion's blocks call the norm of these by itself, and scale and shift what the SiLU is given.
    apart = {
        vars(module)["_modules"].get("out_layers") for module in modules if hasattr(module, "emb_layers")
    }
    for norm, activation in (pair for module in modules if module not in apart for pair in _pairs(module)):
        if norm not in taken and places[norm] == places[activation] == 1:
            taken |= {norm, activation}
            yield {norm: _norm_and_silu, activation: _nothing}, _on_random_input(norm, activation)
    for module in modules:
        if _is_norm(module) and module not in taken:
            yield {module: _norm}, _on_random_input(module)


def _pairs(module: nn.Module) -> Iterator[tuple[nn.GroupNorm, nn.Module]]:
    """A GroupNorm and the SiLU that its output goes to, and nothing else."""
    children = list(module._modules.values()) if type(module) is nn.Sequential else []
    ending = [getattr(module, name, None) for name in ("conv_norm_out", "conv_act")]
    for first, second in (*itertools.pairwise(children), ending):
        if _is_norm(first) and _is_silu(second):
            yield first, second


def _is_residual_block(module: nn.Module) -> TypeGuard[ResidualBlock]:
    wanted = {"norm1": nn.GroupNorm, "conv1": nn.Conv2d, "norm2": nn.GroupNorm, "conv2": nn.Conv2d}
    wanted |= {"time_emb_proj": nn.Linear, "dropout": nn.Dropout}
    others = ("upsample", "downsample", "conv_shortcut", "skip_time_act", "output_scale_factor")
    return (
        all(type(getattr(module, name, None)) is kind for name, kind in wanted.items())
        and all(hasattr(module, name) for name in others)
        and getattr(module, "time_embedding_norm", None) in ("default", "scale_shift")
        and all(_is_untouched(getattr(module, name)) for name in ("norm1", "norm2", "conv1"))
        and _is_silu(getattr(module, "nonlinearity", None))
        and "forward" not in vars(module)
    )


def _is_norm(module: object) -> TypeGuard[nn.GroupNorm]:
    """GroupNorm, and guided-diffusion's GroupNorm32, the same in float32 as the kernel computes it."""
    is_one = type(module) is nn.GroupNorm or type(module).__name__ == "GroupNorm32"
    return is_one and isinstance(module, nn.GroupNorm) and _is_untouched(module)


def _is_silu(module: object) -> TypeGuard[nn.Module]:
    """Whether a module without weights computes SiLU, whatever it is called."""
    if not isinstance(module, nn.Module) or not _is_untouched(module):
        return False
    if list(module.children()) or module.state_dict():
        return False
    points = torch.linspace(-8, 8, 33)
    try:
        return bool(torch.allclose(module(points.clone()), F.silu(points), atol=1e-6))
    except Exception:  # somebody else's module, on a vector of numbers
        return False


def _is_untouched(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return "forward" not in vars(module) and not any(hooks)


def _norm(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps, activation="none")


def _norm_and_silu(self: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm_silu(x, self.num_groups, self.weight, self.bias, self.eps)


def _nothing(self: nn.Module, x: Tensor) -> Tensor:
    """In the place of an activation that has been applied."""
    return x


def _residual_block(
    self: ResidualBlock, input_tensor: Tensor, temb: Tensor, *_: object, **__: object
) -> Tensor:
    """diffusers' ResnetBlock2D; on CUDA the first convolution leaves its bias to the second norm."""
    h = _norm_and_silu(self.norm1, input_tensor)
    resample = self.upsample or self.downsample
    if resample is not None:
        input_tensor, h = resample(input_tensor), resample(h)
    vectors = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))
    pre_bias = scale = shift = None
    if self.time_embedding_norm == "default":
        pre_bias = vectors
    else:
        scale, shift = vectors.chunk(2, dim=1)
    conv, norm = self.conv1, self.norm2
    if runs_kernels(h.device) and conv.bias is not None:
        h = F.conv2d(h, conv.weight, None, conv.stride, conv.padding)
        pre_bias = conv.bias[None] if pre_bias is None else pre_bias + conv.bias
    else:
        h = conv(h)
    affine = (norm.weight, norm.bias, norm.eps)
    h = group_norm_silu(h, norm.num_groups, *affine, pre_bias=pre_bias, scale=scale, shift=shift)
    h = self.conv2(self.dropout(h))
    if self.conv_shortcut is not None:
        # As diffusers does: strides of gradients that DistributedDataParallel expects.
        input_tensor = self.conv_shortcut(input_tensor.contiguous() if self.training else input_tensor)
    out: Tensor = input_tensor + h
    return out if self.output_scale_factor == 1 else out / self.output_scale_factor


def _on_random_input(first: nn.GroupNorm | ResidualBlock, *then: nn.Module) -> Callable[[], Tensor]:
    """A call of modules one after the other on a random feature map, and a time embedding if they take it."""
    norm = first if isinstance(first, nn.GroupNorm) else first.norm1
    like = next(first.parameters(), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(2, norm.num_channels, 8, 8, generator=generator) + 1).to(like)
    inputs = [x]
    if not isinstance(first, nn.GroupNorm):
        inputs.append(torch.randn(2, first.time_emb_proj.in_features, generator=generator).to(like))

    def run() -> Tensor:
        h: Tensor = first(*inputs)
        for module in then:
            h = module(h)
        return h

    return run


def _run(modules: Iterable[nn.Module], run: Callable[[], Tensor]) -> Tensor:
    """What the modules give, without dropout, gradients or TF32; their modes are put back."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        with torch.no_grad(), forced("highest"):
            return run()
    finally:
        for part, mode in modes:
            part.training = mode


def _agree(ours: Tensor, theirs: Tensor) -> bool:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    difference = (ours - theirs).abs().max()
    return bool(difference <= TOLERANCE[ours.dtype] * theirs.abs().max())

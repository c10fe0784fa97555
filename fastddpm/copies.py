"""Weights that are copies of others', and are brought up to date before each chain.

They are copied anew for every chain, whatever else happened: writing to ``parameter.data``, as averaging
weights by hand does, changes values without any trace that could be asked for. A captured loop replays the
copying as part of one graph, which costs the host a launch.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument
from fastddpm.network import Model, model_device_dtype
from fastddpm.precision import DTYPES, Precision, dtype_of, precision_for
from fastddpm.unet import UNet
from fastddpm.weights import Inventory


@dataclasses.dataclass(frozen=True)
class Copies:
    """How copies are brought up to date.

    Attributes:
        refresh: does it, by operators of the device on tensors that stay where they are.
        places: a number that changes where those lie elsewhere.
        model: equal as long as the tensors of the model that has the copies are the same ones.
    """

    refresh: Callable[[], None]
    places: int
    model: Hashable


def copying(targets: Sequence[Tensor], sources: Sequence[Tensor], places: int, model: Hashable) -> Copies:
    """Copies of tensors, each of another's shape."""

    def refresh() -> None:
        with torch.inference_mode(False), torch.no_grad():
            if targets:
                torch._foreach_copy_(list(targets), list(sources))

    return Copies(refresh, places, model)


class Copied:
    """A network in another form, which follows the original's weights.

    Args:
        original: left as it is.
        arrange: makes the other form, with parameters and buffers in the original's order. Those that lie
            where the original's lie are shared, the others copied.

    The hooks of the original's parts are those of the copy's, so that one that is added later runs too.

    Attributes:
        module: the other form, with the weights of the last time that its `copies` were refreshed.
    """

    def __init__(self, original: nn.Module, arrange: Callable[[nn.Module], nn.Module]) -> None:
        self.original, self._arrange = original, arrange
        self._inventory = Inventory([original])
        self.module, self._copies = self._made()

    def copies(self) -> Copies:
        """What gives it the original's weights and buffers.

        These are looked up anew where they lie elsewhere, and the form is made anew where they are others, or
        where some of them are shared, or parts have been exchanged or given a forward of their own.
        """
        places = self._inventory.look().places()
        if self._parts_now() != self._parts:
            self.module, self._copies = self._made()
        elif places != self._copies.places:
            ours, theirs = _tensors(self.module), _tensors(self.original)
            if not self._shares and list(map(_kind, ours)) == list(map(_kind, theirs)):
                self._copies = copying(ours, theirs, places, self.module)
            else:
                self.module, self._copies = self._made()
        return self._copies

    def _made(self) -> tuple[nn.Module, Copies]:
        module = self._arrange(self.original).eval()  # nobody trains a copy
        places = self._inventory.look().places()
        self._parts = self._parts_now()
        _share_hooks(self.original, module)
        pairs = list(zip(_tensors(module), _tensors(self.original), strict=True))
        copied = [(ours, theirs) for ours, theirs in pairs if ours.data_ptr() != theirs.data_ptr()]
        self._shares = len(copied) < len(pairs)
        targets, sources = [ours for ours, _ in copied], [theirs for _, theirs in copied]
        return module, copying(targets, sources, places, module)

    def _parts_now(self) -> list[tuple[nn.Module, object]]:
        """The original's parts, and the forwards that are some part's own. Modules are equal if the same."""
        return [(part, vars(part).get("forward")) for part in self._inventory.parts]


class InDtype(Copied):
    """A copy of a network in another dtype.

    Args:
        original: left as it is.
        dtype: of the copy.
    """

    def __init__(self, original: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(original, lambda module: copy.deepcopy(module).to(dtype).requires_grad_(False))


class InPrecision:
    """What a sampler's network computes in, and the copy that this may take.

    Args:
        model: as it was given.
        precision: what it is to compute in, None for its weights' dtype.
        dtype: what it takes x in; None for its weights'.

    Attributes:
        precision: of a `UNet`, what ``dtype`` means there, too.
        dtype: what it takes x in.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """

    def __init__(self, model: Model, precision: Precision | None, dtype: torch.dtype | None) -> None:
        _, seen = model_device_dtype(model)
        self.precision = precision_for(precision, dtype, seen) if isinstance(model, UNet) else precision
        self.dtype = dtype_of(self.precision, dtype) or seen
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise BadArgument("model", f"{self.dtype} weights", "float32, float16 or bfloat16")
        self._copy: InDtype | None = None
        if self.precision in DTYPES and seen != self.dtype:
            self._check(model, seen)

    def model(self, given: Model) -> tuple[Model, Copies | None]:
        """The network to run for one that was given, and what brings its weights up to date."""
        if self.precision not in DTYPES or model_device_dtype(given)[1] == self.dtype:
            return given, None
        assert isinstance(given, torch.nn.Module)
        if self._copy is None or self._copy.original is not given:
            self._copy = InDtype(given, self.dtype)
        copies = self._copy.copies()  # which may make the copy anew
        return self._copy.module, copies

    def _check(self, model: Model, weights: torch.dtype) -> None:
        if not isinstance(model, torch.nn.Module):
            raise BadArgument(
                "precision",
                f"{self.precision!r} for a model that is no torch Module and cannot be cast",
                "highest, tf32 or None, and dtype= for a model that takes x in another dtype,",
            )
        if weights != torch.float32:
            raise BadArgument(
                "precision", f"{self.precision!r} for {weights} weights", f"float32 or {self.dtype} ones"
            )


HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
"""Where a module holds the hooks around its forward, and what they are given."""


def _share_hooks(original: nn.Module, module: nn.Module) -> None:
    """Gives a copy's parts the hooks of the original's, themselves, which a copy of them would not count for.

    A part of another kind than the original's has another forward, which its hooks are not for.
    """
    for theirs, ours in zip(original.modules(), module.modules(), strict=False):
        if type(ours) is type(theirs):
            for name in HOOKS:
                if name in vars(theirs):  # not so of scripted modules
                    vars(ours)[name] = vars(theirs)[name]


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return (tensor.shape, tensor.device, tensor.is_floating_point())

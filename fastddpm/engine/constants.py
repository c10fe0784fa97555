"""Tensors of the host that a model makes and sends to the card in every pass, kept there for captured steps.

guided-diffusion computes the frequencies of its time embedding on the host each time, and a capture refuses
the copy. What a pass makes of numbers alone, the same in every pass before the capture, is what a graph would
repeat: so it is sent once, and captured steps are given a copy of that. What comes from outside of the pass,
such as an attribute of the model, may be another in the next call, and is no constant.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm.engine.watch import Operator

SEND = "aten::_to_copy"
"""What `Tensor.to` and `Tensor.cuda` run."""
OF_NUMBERS = "aten::lift_fresh"
"""What `torch.tensor` ends with."""


class Constants:
    """What passes send from the host, by its place in a pass.

    Args:
        device: the kind of device that it goes to.

    Attributes:
        varies: whether something was sent that is no constant.
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device, self.varies = device, False
        self.sent: list[tuple[tuple[object, ...], Tensor]] = []

    def passing(self) -> TorchDispatchMode:
        """Around one pass."""
        return _Pass(self)


class _Pass(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, constants: Constants) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._constants, self._place = constants, 0
        # Made in this pass of numbers alone, by the memory that they lie in; held, so that it stays theirs.
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self,
        operator: Operator,
        types: object,
        arguments: tuple[object, ...] = (),
        options: dict[str, object] | None = None,
    ) -> object:
        options = options or {}
        given = [value for value in tree_leaves((arguments, options)) if isinstance(value, Tensor)]
        to = options.get("device")
        goes = isinstance(to, torch.device) and to.type == self._constants.device
        if operator.name() == SEND and goes and given[0].device.type == "cpu":
            return self._sent(operator, given[0], arguments, options)
        result = operator(*arguments, **options)
        of_numbers = operator.name() == OF_NUMBERS or all(map(self._is_made, given))
        for made in tree_leaves(result):
            if isinstance(made, Tensor) and made.device.type == "cpu":
                if of_numbers:
                    self._made[made.untyped_storage()._cdata] = made
                else:  # also where another tensor is written into one of them
                    self._made.pop(made.untyped_storage()._cdata, None)
        return result

    def _is_made(self, value: Tensor) -> bool:
        return value.device.type == "cpu" and value.untyped_storage()._cdata in self._made

    def _sent(
        self,
        operator: Operator,
        given: Tensor,
        arguments: tuple[object, ...],
        options: dict[str, object],
    ) -> object:
        constants, place = self._constants, self._place
        self._place += 1
        constants.varies |= not self._is_made(given)
        if constants.varies:
            return operator(*arguments, **options)
        key = _key(given, options)
        if place == len(constants.sent):
            result = operator(*arguments, **options)
            assert isinstance(result, Tensor)
            constants.sent.append((key, result))
        constants.varies |= constants.sent[place][0] != key
        # A copy: a model may write into what it has sent.
        return operator(*arguments, **options) if constants.varies else constants.sent[place][1].clone()


def _key(given: Tensor, options: dict[str, object]) -> tuple[object, ...]:
    """All that the copy depends on, the values by their bytes."""
    values = given.detach().contiguous()
    held = ctypes.string_at(values.data_ptr(), values.numel() * values.element_size())
    chosen = tuple(sorted((name, str(value)) for name, value in options.items()))
    return held, values.dtype, tuple(given.shape), given.stride(), chosen

"""What is looked at in the first call of a loop's network, and not again: a step costs no more by it.

A model that changes x in place changes the state that the step then starts from, and the images are wrong
without a word; one that returns twice the channels under a fixed variance would have half of them dropped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from torch import Tensor

from fastddpm.checks import BadArgument
from fastddpm.network import Network


class FirstCall:
    """A network as the steps of a loop call it, looked at in the first call.

    Args:
        network: of the loop.
        x: the loop's state, which the network is called with.
        channels: C of a state, the size of its second axis.

    Attributes:
        outputs: channels that the model returned; None before its first call.
    """

    def __init__(self, network: Network, x: Tensor, channels: int) -> None:
        self._network, self._x, self._channels = network, x, channels
        self.outputs: int | None = None
        self._learns = True

    def __call__(self, x: Tensor, k: Tensor) -> Tensor:
        """As `Network`.

        Raises:
            ValueError: the model changed x, or a condition, in place; it returned another number of channels
                than the plan's variance has use for.
        """
        if self.outputs is not None:
            return self._network(x, k)
        given = {"x": self._x, **self._network.cond}
        before = {name: (value._version, _content(value)) for name, value in given.items()}
        try:
            m = self._network(x, k)
        except Exception:  # an engine that compares outputs may have failed over it
            _check_same(given, before)
            raise
        _check_same(given, before)
        self.outputs = m.shape[1] if m.ndim > 1 else self._channels
        self.expect(self._learns)
        return m

    def expect(self, learned_range: bool) -> None:
        """Says whether the plan that comes next has a use for 2C channels.

        Raises:
            ValueError: it has not, and the model returned so many in its first call.
        """
        self._learns = learned_range
        if self.outputs == 2 * self._channels and not learned_range:
            raise BadArgument(
                "variance_type",
                f"a fixed one with a model that returns {self.outputs} channels for an image of "
                f"{self._channels}",
                "learned_range (methods that learn no variance leave the second half out)",
            )


def _check_same(now: Mapping[str, Tensor], before: Mapping[str, tuple[int, bytes]]) -> None:
    for name, value in now.items():
        if before[name] != (value._version, _content(value)):
            raise BadArgument(
                "model",
                f"one that changes its input {name!r} in place",
                "one that leaves it as it is, such as lambda x, t, **cond: model(x.clone(), t, **cond)",
            )


def _content(value: Tensor) -> bytes:
    """The bytes of a tensor of the host, which show what its version does not (``.data``, NumPy); of a device
    nothing, which would be waited for."""
    if value.device.type != "cpu":
        return b""
    return ctypes.string_at(value.data_ptr(), value.numel() * value.element_size())  # buffers have no gaps

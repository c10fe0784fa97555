"""The tiny network that tests of samplers and engines share, and the buffers of one filled."""

from fastddpm_bench.tiny import TINY, make_unet

__all__ = ["TINY", "fill", "make_unet"]


def fill(network, time, cond, condition=None):
    """Puts one chain into a `fastddpm.network.Network`, as a loop does."""
    network.time[: len(time)].copy_(time)
    for name, value in cond.items():
        network.given[name].copy_(value)
    if condition is not None:
        network.condition.copy_(condition)
    network.begin(len(time))

"""One forward pass of a network: diffusers' module, ONNX Runtime, and our UNet with the same weights.

In our loop the time path is a table (`fastddpm.network`); "tabulated" is the network as the loop calls it.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from fastddpm.timing import Call
from fastddpm.unet.deferred import Deferred
from fastddpm_bench import exported
from fastddpm_bench.contest import BenchSettings, Contest, Contestant
from fastddpm_bench.costs import OpCost, watched
from fastddpm_bench.subjects.variants import Layout, arranged, layouts, replayed_too
from fastddpm_bench.workloads import CIFAR10, MNIST, WORKLOADS, Workload, noise

STEP = 500


class Pass:
    """A network, an input and a timestep."""

    def __init__(self, workload: Workload, batch: int, device: torch.device) -> None:
        self.workload, self.device = workload, device
        self.unet = workload.unet(device)
        self.x = noise((batch, *workload.shape), device)
        self.t = torch.full((batch,), STEP, device=device)


def contests(settings: BenchSettings) -> list[Contest]:
    """One for each network."""
    if settings.quick:
        sizes = {MNIST: 8, CIFAR10: 1}
    else:
        large = {workload: 16 if settings.is_cuda else 2 for workload in WORKLOADS}
        sizes = {**large, MNIST: 256 if settings.is_cuda else 8}
    return [
        Contest(
            subject="unet",
            workload=f"{workload.name}, batch {batch}",
            setup=functools.partial(Pass, workload, batch, settings.device),
            contestants=_contestants(settings),
            # Other layouts and compilers sum convolutions of 9*256 products in other orders.
            tolerance=1e-4,
            costs=_costs,
            needs_gpu=workload.needs_gpu,
        )
        for workload, batch in sizes.items()
    ]


def _costs(shared: Pass) -> list[OpCost]:
    return watched(lambda: shared.unet(shared.x, shared.t))


def _contestants(settings: BenchSettings) -> list[Contestant]:
    found = []
    for layout in layouts(settings):
        theirs = Contestant(
            f"diffusers UNet2DModel{layout.name}", functools.partial(_diffusers, layout=layout)
        )
        # Torch's own graphs are replays already, and no capture may hold one.
        found += [theirs] if layout.is_replayed else replayed_too(theirs, settings)
    if not settings.quick and not settings.is_cuda:
        found.append(Contestant("ONNX Runtime", _onnxruntime))
        found.append(Contestant("OpenVINO", _openvino))
    for layout in layouts(settings):
        build = functools.partial(_tabulated, layout=layout)
        ours = Contestant(f"fastddpm UNet, tabulated{layout.name}", build, ours=True)
        found += [ours] if layout.is_replayed else replayed_too(ours, settings)
    return found


def _without_grad(function: Call) -> Call:
    def call() -> Tensor:
        with torch.no_grad():
            output: Tensor = function()
        return output

    return call


def _diffusers(shared: Pass, layout: Layout) -> Call:
    module = arranged(shared.workload.unet2d(shared.unet), layout)
    return _without_grad(lambda: module(shared.x, shared.t).sample)


def _tabulated(shared: Pass, layout: Layout) -> Call:
    module: Any = arranged(shared.unet, layout._replace(compiled=None))
    with torch.no_grad():
        bias = module.time_biases(shared.t[:1])
    if shared.device.type == "cuda":
        module = Deferred(module)
        bias = bias if module.table_offset is None else bias + module.table_offset
    mode = None if layout.compiled == "default" else layout.compiled
    forward = module.forward_biased
    if layout.compiled:
        forward = torch.compile(forward, dynamic=False, mode=mode)
    return _without_grad(lambda: forward(shared.x, bias))


def _onnxruntime(shared: Pass) -> Call:
    run = exported.by_onnxruntime(shared.workload, len(shared.x))
    return lambda: run(shared.x, shared.t)


def _openvino(shared: Pass) -> Call:
    run = exported.by_openvino(shared.workload, len(shared.x), "f32")
    return lambda: run(shared.x, shared.t)

"""Proof d: a whole step on fake CUDA tensors: all its tensors are on the device, nothing is read on the host.

Fake tensors run the real Python with shapes and devices and no data. A read of a device value (`.item()`,
`if tensor`) raises there; other host traffic (`.cpu()`, an index made on the host, `torch.tensor(...,
device="cuda")`) does not, and is found by the tensors that pass through the dispatcher.
"""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import UNet2DModel
from fake_cuda_steps import BUFFERS, run_step
from networks import TINY
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

from fastddpm import UNet
from fastddpm.engine.step import StepCase
from fastddpm.network import Network
from fastddpm.tabulated import bind
from fastddpm.unet1d import UNet1D, UNet1DConfig

SHAPE = (2, 3, 8, 8)
CASES = {
    "ddpm": StepCase(SHAPE, clip=True),
    "ddpm unclipped": StepCase(SHAPE),
    "ddim": StepCase(SHAPE, noise="none"),
    "guided": StepCase(SHAPE, clip=True, guided=True),
    "known": StepCase(SHAPE, clip=True, known=True),
    "2M": StepCase(SHAPE, noise="none", kept=1, guided=True),
    "three kept": StepCase(SHAPE, noise="none", kept=3, combine=True),
    "torch noise": StepCase(SHAPE, noise="torch", ring=4, clip=True),
    "predictor and corrector": StepCase(SHAPE, noise="torch", ring=4, langevin=(0.15, 1)),
    "trajectory": StepCase(SHAPE, clip=True, keep_x0=True),
    "thresholded": StepCase(SHAPE, thresholding=(0.99, 2.0), guided=True),
    "in flight": StepCase(SHAPE, clip=True, kept=1, arena=True),
    "in flight, some guided": StepCase(SHAPE, clip=True, kept=1, arena=True, mixed=True),
}
# A UNet of their kind, with attention and classes.
DIFFUSERS = {
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "num_class_embeds": 5,
}


@contextlib.contextmanager
def parameters_of(dtype):
    """Modules are made with this dtype: fake parameters cannot be converted."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def bound(model, case, cond):
    """As a loop on CUDA has it."""
    return bind(model, guided=case.guided, cond=cond, form="deferred", **{**BUFFERS, "dtype": model.dtype})


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_our_network_stays_on_the_device(fake_cuda, name, dtype, proof):
    case = CASES[name]
    with fake_cuda, parameters_of(dtype):
        labels = torch.zeros(4 if case.guided else 2, dtype=torch.int64)
        model = UNet(TINY).eval()
    assert model.dtype == dtype
    devices = run_step(case, bound(model, case, {"class_labels": labels}))
    if dtype == torch.bfloat16:
        proof("d", f"our UNet: {name}", **figures(devices))
    assert devices.strays == []
    assert devices.operators.count("fastddpm::reverse_step") == 1


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_diffusers_network_stays_on_the_device(fake_cuda, name, proof):
    case = CASES[name]
    with fake_cuda, parameters_of(torch.bfloat16):
        model = UNet2DModel(**DIFFUSERS).eval()
        cond = {"class_labels": torch.zeros(4 if case.guided else 2, dtype=torch.int64)}
    devices = run_step(case, bound(model, case, cond))
    proof("d", f"diffusers' UNet2DModel: {name}", **figures(devices))
    assert devices.strays == []
    assert devices.operators.count("fastddpm::reverse_step") == 1


def test_a_step_in_sigmas_stays_on_the_device(fake_cuda):
    case = StepCase(SHAPE, noise="torch", ring=4, kept=2, guided=True, clip=True, in_sigmas=True)
    with fake_cuda, parameters_of(torch.float32):
        model = UNet2DModel(**DIFFUSERS).eval()
        cond = {"class_labels": torch.zeros(4, dtype=torch.int64)}
    devices = run_step(case, bound(model, case, cond))
    assert devices.strays == []
    assert "fastddpm::reverse_step" not in devices.operators


def test_a_step_of_the_network_of_actions_stays_on_the_device(fake_cuda, proof):
    """With each norm and its Mish as one kernel, and no map copied into another layout."""
    case = StepCase((2, 8, 3), clip=True)
    with fake_cuda:
        model = UNet1D(UNet1DConfig(3, 6, (16, 32), num_groups=4, time_dim=8)).eval().requires_grad_(False)
        cond = {"global_cond": torch.zeros(2, 6)}
    devices = run_step(case, bound(model, case, cond))
    plain = run_step(case, bind(model, guided=False, cond=cond, **{**BUFFERS, "dtype": model.dtype}))
    proof("d", "our UNet1D: ddpm", **figures(devices))
    # FiLM's product and sum are one pass.
    passes = [sum(name.split(".")[0] in PASSES for name in one.operators) for one in (plain, devices)]
    assert passes[0] - passes[1] == len(model.blocks())
    assert devices.strays == []
    norms = sum(isinstance(part, torch.nn.GroupNorm) for part in model.modules())
    assert devices.operators.count("fastddpm::group_norm_mish") == norms
    assert "aten::native_group_norm" not in devices.operators
    assert not {"aten::clone", "aten::_to_copy", "aten::copy_"} & set(devices.operators)
    assert devices.operators.count("fastddpm::reverse_step") == 1


PASSES = {"aten::mul", "aten::add", "aten::addcmul"}


def figures(devices):
    """Operators that a step dispatches, views included, and those of them that touch the host."""
    return {"operators": len(devices.operators), "on the host": len(devices.strays)}


def test_a_step_of_a_callable_stays_on_the_device(fake_cuda):
    case = CASES["ddpm"]
    network = Network(lambda x, t: x * t[:, None, None, None], guided=False, cond={}, **BUFFERS)
    assert run_step(case, network).strays == []


VIEWS = {"aten::slice.Tensor", "aten::select.int", "aten::view", "aten::detach"}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_launches_two_kernels_beside_its_network(fake_cuda, layout, proof):
    """The state is updated in place, and a channels_last output is read as it is: nothing is copied."""
    with fake_cuda:
        m = torch.empty(SHAPE, dtype=torch.bfloat16).to(memory_format=layout)
    devices = run_step(CASES["ddpm"], lambda x, k: m)
    launches = [name for name in devices.operators if name not in VIEWS and "prim::" not in name]
    name = str(layout).removeprefix("torch.").removesuffix("_format")
    proof("d", f"beside the network, {name} m", operators=len(launches), **{"on the host": 0})
    assert launches == ["fastddpm::reverse_step", "aten::add_.Tensor"]


# Whether the fake tensors themselves refuse, and the offence.
OFFENDERS = {
    "item": (True, lambda x, k: x * k[0].item()),
    "branch": (True, lambda x, k: x if k[0] > 0 else -x),
    "tolist": (True, lambda x, k: x * sum(k.tolist())),
    "data-dependent shape": (True, lambda x, k: x + x[x > 0].sum()),
    "copy to the host": (False, lambda x, k: x * k[:1].cpu().to(x.device)),
    "index on the host": (False, lambda x, k: x[torch.tensor([0, 1])]),
    "tensor made on the host": (False, lambda x, k: x + torch.tensor([2.0], device=x.device)),
    "noise made on the host": (False, lambda x, k: x + torch.randn(x.shape).to(x.device)),
}


@pytest.mark.parametrize("name", OFFENDERS)
def test_known_offenders_are_caught(fake_cuda, name, proof):
    raises, offence = OFFENDERS[name]
    if raises:
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            run_step(CASES["ddpm"], offence)
        proof("d", f"offender: {name}", caught="by the fake tensors")
    else:
        strays = run_step(CASES["ddpm"], offence).strays
        assert strays != []
        proof("d", f"offender: {name}", caught=strays[0])

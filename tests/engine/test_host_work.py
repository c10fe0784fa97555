"""What a call costs the host: operators counted, no copy that waits for a card, nothing derived is stale."""

from __future__ import annotations

import copy

import pytest
import torch
from host_copies import HostCopies, pretend_streams
from networks import TINY, make_unet
from replay import RecordingBackend
from tolerances import SAME_OPS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastddpm
from fastddpm import NoiseSchedule, Sampler, UNet
from fastddpm.engine import Loop, executors
from fastddpm.engine.parcel import Parcel
from fastddpm.weights import Inventory

# Operators of a call whose steps and captured work are left out, views among them. They were 225 and 53.
MOST_OPERATORS = 22
CALL = {"class_labels": 1, "progress": False}


class Operators(TorchDispatchMode):
    """The names of the operators that are dispatched."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, operator, types, arguments=(), options=None):
        self.names.append(operator.name())
        return operator(*arguments, **(options or {}))


class Stub(RecordingBackend):
    """Captures as usual and replays nothing."""

    def capture(self, run):
        super().capture(run)
        return lambda: None


def captured_everywhere(monkeypatch, backend):
    """The captured engine on a CPU, for samplers and drop-ins."""
    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr(executors, "CudaGraphBackend", backend)


@pytest.fixture(scope="module")
def pipeline():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler())


def quiet(fast):
    fast.set_progress_bar_config(disable=True)
    return fast


def drawn(fast, **options):
    generator = torch.Generator().manual_seed(3)
    return fast(2, generator=generator, num_inference_steps=4, output_type="pt", **options).images


def test_a_call_dispatches_few_operators(sampler, pipeline, monkeypatch):
    captured_everywhere(monkeypatch, Stub)
    fast = sampler.replace(engine="cudagraph")
    plain, low = (quiet(fastddpm.optimize(pipeline, dtype=dtype)) for dtype in (None, torch.bfloat16))
    calls = {
        "sampler": lambda: fast.sample(seeds=[1, 2], **CALL),
        "pipeline": lambda: drawn(plain),
        "pipeline in bfloat16": lambda: drawn(low),
    }
    for name, call in calls.items():
        for _ in range(3):
            call()
        with Operators() as operators:
            call()
        assert len(operators.names) <= MOST_OPERATORS, (name, operators.names)
        assert "aten::_foreach_copy_" not in operators.names


@pytest.fixture
def pretended_streams(monkeypatch):
    """No card, and steps that are left out."""
    pretend_streams(monkeypatch)
    monkeypatch.setattr(Loop, "run", lambda self, n_steps: None)


@pytest.mark.skipif(not torch.version.cuda, reason="fake CUDA tensors need a CUDA build of torch")
@pytest.mark.usefixtures("pretended_streams")
def test_a_chain_waits_for_no_copy_to_the_card(fake_cuda, monkeypatch):
    """On fake CUDA tensors, through which values cannot be read: every copy is from page-locked memory.

    The look at the finished images is the one read of a chain, and comes after it.
    """
    looks = []
    monkeypatch.setattr("fastddpm.configured.check_finite", lambda *images: looks.append(images))
    with fake_cuda:
        unet = UNet(TINY).eval()
    options = {"num_inference_steps": 4, "shape": (3, 8, 8), "engine": "eager"}
    sampler = Sampler(unet, NoiseSchedule.linear(), **options)
    assert sampler.device.type == "cuda"
    requests = [
        {"seeds": [1, 2], "guidance_scale": 2.0},
        {"batch_size": 2, "noise": "torch", "generator": torch.Generator()},
        {"seeds": [1, 2, 3], "max_batch": 2},
    ]
    for request in requests:
        with HostCopies() as copies:
            images = sampler.sample(**{"class_labels": 1, **request}, progress=False)
        assert images.is_cuda
        assert copies.sent
        assert all(copies.sent)
    assert len(looks) == 4  # one a batch
    # The plan is there from the first call; one parcel is what a call sends.
    with HostCopies() as copies:
        sampler.sample(seeds=[1, 2], class_labels=1, guidance_scale=2.0, progress=False)
    assert copies.sent == [True]


def test_a_parcel_holds_each_value_where_its_buffer_expects_it():
    device = torch.device("cpu")
    buffers = {
        "counter": torch.zeros(2, dtype=torch.int64),
        "guidance": torch.zeros(3),
        "text": torch.zeros(2, 5, dtype=torch.bfloat16),
        "flag": torch.zeros(3, dtype=torch.bool),
    }
    values = {
        "counter": torch.tensor([4, 2**40]),
        "text": torch.arange(20.0).bfloat16().reshape(5, 4)[:, ::2].T,
        "flag": torch.tensor([True, False, True]),
    }
    buffers["guidance"].fill_(7.0)
    parcel = Parcel(buffers, device)
    parcel.send(values)
    assert not buffers["counter"].any()  # nothing arrives before it is unpacked
    parcel.unpack()
    for name, value in values.items():
        assert torch.equal(buffers[name], value)
    assert not buffers["guidance"].any()
    parcel.send({**values, "guidance": torch.tensor([1.0, 2.0, 3.0])})
    parcel.unpack()
    assert buffers["guidance"].tolist() == [1.0, 2.0, 3.0]


def scaled(parameters):
    with torch.no_grad():
        torch._foreach_mul_(list(parameters), 1.2)


def by_data(module):
    """As averages of weights are put into a network: no version counter moves."""
    versions = [parameter._version for parameter in module.parameters()]
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data * 1.2)
    assert versions == [parameter._version for parameter in module.parameters()]


def by_pointer(module):
    for parameter in module.parameters():
        parameter.data = parameter.data * 1.2


def by_part(module):
    """Every layer with weights put in the place of the one that was there."""
    for part in list(module.modules()):
        for name, layer in list(part.named_children()):
            if next(layer.children(), None) is None and next(layer.parameters(), None) is not None:
                other = copy.deepcopy(layer)
                scaled(other.parameters())
                setattr(part, name, other)


CHANGES = {
    "in place": lambda module: scaled(module.parameters()),
    "data": by_data,
    "data exchanged": by_pointer,
    "loaded": lambda module: module.load_state_dict({k: v * 1.2 for k, v in module.state_dict().items()}),
    "assigned": lambda module: module.load_state_dict(
        {k: v * 1.2 for k, v in module.state_dict().items()}, assign=True
    ),
    "parts exchanged": by_part,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("captured", "dtype"), [(False, None), (True, None), (True, torch.bfloat16)])
def test_a_pipelines_weights_are_never_stale(pipeline, monkeypatch, change, captured, dtype):
    """Also once what is derived from them is replayed; against a drop-in made afterwards."""
    mine = copy.deepcopy(pipeline.unet), pipeline.scheduler
    ours = type(pipeline)(unet=mine[0], scheduler=mine[1])
    with monkeypatch.context() as patch:
        if captured:
            captured_everywhere(patch, RecordingBackend)
        fast = quiet(fastddpm.optimize(ours, dtype=dtype))
        before = [drawn(fast) for _ in range(3)]
        assert torch.equal(before[0], before[2])
        CHANGES[change](ours.unet)
        after = [drawn(fast) for _ in range(3)]
    expected = drawn(quiet(fastddpm.optimize(ours, dtype=dtype)))
    assert (expected - before[0]).abs().max() > 1e-2
    for images in after:
        assert (images - expected).abs().max() <= SAME_OPS


@pytest.mark.parametrize("change", CHANGES)
def test_the_time_table_is_never_stale(sampler, unet, monkeypatch, change):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    fast = sampler.replace()
    fast.runner.loops = type(fast.runner.loops)("cudagraph")
    call = {"seeds": [3, 4], **CALL}
    before = [fast.sample(**call) for _ in range(3)][-1]
    CHANGES[change](unet.time_mlp)
    for _ in range(3):
        expected = sampler.sample(**call)
        assert (expected - before).abs().max() > 1e-3
        assert (fast.sample(**call) - expected).abs().max() <= SAME_OPS


def test_plans_of_a_scheduler_are_kept_while_it_is_the_same(pipeline):
    ours = type(pipeline)(unet=pipeline.unet, scheduler=copy.deepcopy(pipeline.scheduler))
    fast = quiet(fastddpm.optimize(ours))
    first = fast._plan(4)
    assert fast._plan(4) is first
    assert fast._plan(5) is not first
    assert fast._plan(4, eta=0.5) is not first
    assert fast._plan(4) is first
    ours.scheduler.alphas_cumprod[500] *= 0.9
    changed = fast._plan(4)
    assert changed is not first
    assert not (changed.table == first.table).all()
    ours.scheduler.register_to_config(clip_sample=False)
    assert not fast._plan(4).clip


def test_an_inventory_sees_what_is_exchanged(unet):
    inventory = Inventory([unet])
    assert {id(part) for part in inventory.parts} == {id(part) for part in unet.modules()}
    tensors = [*unet.parameters(), *unet.buffers()]
    assert {id(tensor) for tensor in inventory.tensors()} == {id(tensor) for tensor in tensors}
    seen = [inventory.places()]
    changes = [
        lambda: setattr(unet, "conv_out", make_unet(TINY, seed=1).conv_out),
        lambda: unet.mid[0].register_buffer("extra", torch.zeros(3)),
        lambda: unet.mid[0].add_module("more", nn.Linear(2, 2)),
        lambda: setattr(unet.conv_in, "weight", nn.Parameter(unet.conv_in.weight.detach().clone())),
        lambda: setattr(unet.conv_in.bias, "data", unet.conv_in.bias.data.half()),
        lambda: unet.mid.append(nn.Identity()),
        lambda: delattr(unet, "conv_out"),
    ]
    for change in changes[:-2]:
        change()
        seen.append(inventory.look().places())
        assert {id(part) for part in inventory.parts} == {id(part) for part in unet.modules()}
    assert len(set(seen)) == len(seen)
    for change in changes[-2:]:
        change()
        assert {id(part) for part in inventory.look().parts} == {id(part) for part in unet.modules()}
    shared = nn.Linear(2, 2)
    assert len(Inventory([nn.Sequential(shared, nn.ReLU(), shared)]).parts) == 3

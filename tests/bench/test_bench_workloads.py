"""The networks and loops of the benchmarks are those that they are said to be."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastddpm
from fastddpm.data import open_dataset
from fastddpm.evaluation import load_digit_classifier
from fastddpm.unet import UNet
from fastddpm.unet import diffusers as dialect
from fastddpm_bench.contest import BenchSettings, assemble
from fastddpm_bench.costs import watched
from fastddpm_bench.subjects import pipelines, restated, variants
from fastddpm_bench.subjects.training import TrainingBatch
from fastddpm_bench.workloads import CIFAR10, MNIST, WORKLOADS, Workload

CPU = torch.device("cpu")
TINY = Workload(
    "tiny 8x8",
    (3, 8, 8),
    {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": None,
    },
)


def test_the_network_without_classes_is_the_model_in_the_box_for_no_class():
    model = fastddpm.load("mnist").model
    plain = MNIST.unet(CPU)
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([10, 900])
    with torch.no_grad():
        expected = model(x, t, torch.full((2,), 10))
        assert (plain(x, t) - expected).abs().max() < 1e-5
        assert (model(x, t, torch.full((2,), 3)) - expected).abs().max() > 1e-3


def test_chains_of_the_model_in_the_box_draw_digits():
    """With another schedule or prediction they draw something, at the same cost, that rounding decides on."""
    chain = pipelines.Chain(MNIST, "ddim", batch=8, steps=10, device=CPU)
    images = pipelines.plain(chain, variants.AS_IT_COMES)().permute(0, 3, 1, 2)
    _, features = load_digit_classifier().read(2 * images - 1)
    digits, _ = open_dataset("mnist", split="test").batch(torch.arange(200))
    _, real = load_digit_classifier().read(digits)
    # Near to a digit, as digits are to one another: 2.6 here, 9 and more otherwise.
    between = torch.cdist(real, real).fill_diagonal_(float("inf")).min(1).values
    assert torch.cdist(features, real).min(1).values.median() < 4 * between.median()


def test_the_cifar_network_is_that_of_the_checkpoint():
    """google/ddpm-cifar10-32: 35.7 M parameters, 12.2 GFLOP an image and step."""
    unet = CIFAR10.unet(CPU)
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307
    with torch.device("meta"):
        meta = type(unet)(unet.config)
        x, t = torch.empty(1, 3, 32, 32), torch.empty(1, dtype=torch.int64)
    costs = watched(lambda: meta(x, t))
    assert 12.1e9 < sum(op.flops for op in costs) < 12.5e9


@pytest.mark.parametrize("workload", WORKLOADS[1:], ids=lambda workload: workload.name)
def test_names_say_the_parameters(workload):
    with torch.device("meta"):
        unet = UNet(dialect.config(workload.options))
    millions = sum(p.numel() for p in unet.parameters()) / 1e6
    assert workload.name.endswith(f", {millions:.1f} M")


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_every_way_of_sampling_gives_the_same_images(method):
    settings = BenchSettings(CPU, quick=True)
    contest = pipelines.chain_contest("pipelines", TINY, method, 2, 6, settings)
    field = assemble(contest, contest.setup())
    names = set(field.calls)
    assert {"diffusers", "diffusers, channels_last", "plain loop", "Sampler, eager"} <= names
    assert not field.left_out
    assert max(field.differences.values()) < 1e-4


def test_first_losses_agree():
    shared = TrainingBatch(TINY, 3, CPU)
    from fastddpm_bench.subjects import training

    contest = training.contests(BenchSettings(CPU, quick=True))[0]
    field = assemble(contest, shared)
    assert set(field.calls) == {"plain", "plain, channels_last", "diffusers", "fastddpm, channels_last"}
    before = field.calls["plain"]()
    after = [field.calls["plain"]() for _ in range(30)]
    assert torch.stack(after[-5:]).mean() < before  # it does train


class ImageOps(TorchDispatchMode):
    """Counts operators that compute an image outside of the network."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.inside, self.found = shape, 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not self.inside and isinstance(out, torch.Tensor) and out.shape == self.shape:
            self.found.append(func._schema.name.split("::")[1])
        return out


def counted(diffusion, network, shape, step):
    """Operators on images in one step, without those of the network."""
    mode = ImageOps(shape)
    handles = [
        network.register_forward_pre_hook(lambda *_: setattr(mode, "inside", 1)),
        network.register_forward_hook(lambda *_: setattr(mode, "inside", 0)),
    ]
    with mode:
        step()
    for handle in handles:
        handle.remove()
    return sorted(mode.found)


def test_abarankabs_step_is_its_published_formula():
    """x = (x - remove_noise_coeff*eps) * reciprocal_sqrt_alphas; x += sigma*z: ddpm/diffusion.py."""
    chain = restated.abarankab(2, 4, CPU)
    diffusion, shape = chain.diffusion, (2, 3, 32, 32)
    x, t = torch.randn(shape), torch.tensor([2, 2])
    labels = torch.tensor([0, 1])
    found = counted(diffusion, diffusion.ema_model, shape, lambda: diffusion.remove_noise(x, t, labels))
    assert found == ["mul", "mul", "sub"]


def test_sr3s_step_is_its_published_formula():
    """x0 = a*x - b*eps, clamped; mean = c1*x0 + c2*x; mean + z*sigma: model/sr3_modules/diffusion.py."""
    chain = restated.sr3(2, 4, CPU)
    diffusion, shape = chain.diffusion, (2, 3, 32, 32)
    x = torch.randn(shape)
    found = counted(diffusion, diffusion.denoise_fn, shape, lambda: diffusion.p_sample(x, 2, x))
    clamps = ["clamp_"]
    noise = ["randn_like"]
    assert found == sorted(["mul"] * 5 + ["add"] * 2 + ["sub"] + clamps + noise)


def test_compiled_contestants_give_the_same_images(traced):
    contest = pipelines.chain_contest("pipelines", TINY, "ddpm", 2, 3, BenchSettings(CPU))
    field = assemble(contest, contest.setup())
    compiled = {name for name in field.calls if "compile" in name}
    assert len(compiled) == 4
    assert max(field.differences.values()) < 1e-4


def test_chains_in_bfloat16_are_those_of_everybody():
    """A network in bfloat16 inside a chain in float32, by every contestant that a quick run on a CPU has."""
    contest = pipelines.chain_contest(
        "pipelines", MNIST, "ddim", 2, 3, BenchSettings(CPU, quick=True), "bf16"
    )
    assert contest.workload.endswith(", bf16")
    chain = contest.setup()
    field = assemble(contest, chain)
    assert {"diffusers", "plain loop", "fastddpm.optimize, eager", "Sampler, eager"} <= set(field.calls)
    exact = pipelines.theirs(pipelines.Chain(MNIST, "ddim", 2, 3, CPU), variants.AS_IT_COMES)()
    for call in field.calls.values():
        assert 1e-4 < (call() - exact).abs().max() < 0.1
    exact_bytes = sum(cost.bytes for cost in pipelines.Chain(MNIST, "ddim", 2, 3, CPU).costs())
    assert sum(cost.bytes for cost in chain.costs()) < 0.7 * exact_bytes


def test_torch_s_own_graphs_are_among_the_contestants_on_a_gpu(monkeypatch):
    """With the time moved to the card, without which Inductor captures nothing."""
    cuda = BenchSettings(torch.device("cuda"))
    names = {contestant.name for contestant in pipelines.contestants(cuda)}
    assert {"diffusers, channels_last, reduce-overhead", "Sampler, compile", "Sampler, max"} <= names
    first, *_ = pipelines.contests(BenchSettings(torch.device("cuda"), quick=True))
    assert first.workload == "cifar10 32x32, 35.7 M, ddim, 10 steps, batch 64, bf16"
    batches = [contest.workload for contest in pipelines.contests(cuda) if "bf16" in contest.workload]
    assert len(batches) == 5
    modes = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: modes.append(options["mode"]) or module)

    class Timed(torch.nn.Module):
        def forward(self, x, t):
            assert (t.device, t.dtype) == (x.device, torch.int64)
            return x

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            copies.append("copy" in func.name())  # which would wait for the steps before
            return func(*args, **(kwargs or {}))

    network, copies = variants.arranged(Timed(), variants.REDUCED), []
    with Copies():
        assert network(torch.zeros(1, device="meta"), torch.tensor(3)).device.type == "meta"
    assert copies
    assert not any(copies)
    assert network(torch.zeros(2), torch.tensor([3, 4])).device.type == "cpu"
    assert modes == ["reduce-overhead"]


def test_sweeps_have_everybody_s_fastest():
    names = [contestant.name for contestant in pipelines.few_contestants(BenchSettings(CPU))]
    assert names == [
        "diffusers",
        "diffusers, channels_last, compiled",
        "plain loop",
        "plain loop, channels_last, compiled",
        "Sampler, eager",
        "Sampler, onnxruntime",
        "Sampler, compile",
    ]

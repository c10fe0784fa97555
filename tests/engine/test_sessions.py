"""ONNX Runtime as an engine: the eager engine's images, in every chain, never of old weights."""

from __future__ import annotations

import multiprocessing
import warnings

import pytest
import torch
from networks import TINY, make_unet
from torch import nn

import fastddpm
from fastddpm import EngineUnavailable, NoiseSchedule, Sampler, UNetConfig
from fastddpm.engine import sessions

pytest.importorskip("onnxruntime")

ENGINE = "onnxruntime"
# Float32 in another order of sums, amplified by a chain; what issue and documents promise.
SAME_IMAGES = 1e-4
OPTIONS = {"num_inference_steps": 4, "clip_sample_range": 1.0, "shape": (3, 8, 8)}


def pair(model, **options):
    schedule = NoiseSchedule.linear(1000)
    eager = Sampler(model, schedule, engine="eager", **{**OPTIONS, **options})
    return eager, eager.replace(engine=ENGINE)


def check_same(eager, other, **request):
    for seeds in ([1, 2, 3], [7, 2**40, 9]):
        wanted = eager.sample(seeds=seeds, progress=False, **request)
        found = other.sample(seeds=seeds, progress=False, **request)
        assert float((found - wanted).abs().max()) < SAME_IMAGES


@pytest.mark.parametrize(
    ("options", "request_"),
    [
        ({"method": "ddpm"}, {"class_labels": [0, 1, 2]}),
        ({"method": "dpmpp_2m"}, {"class_labels": 1, "guidance_scale": 2.0}),
        ({"method": "ddim", "eta": 0.5}, {"noise": "torch", "max_batch": 3}),
        ({"method": "lms", "timestep_spacing": "karras"}, {"class_labels": 2}),
    ],
    ids=["labels", "guided", "torch-noise", "solver"],
)
def test_images_are_those_of_the_eager_engine(options, request_):
    def request():
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        if request_.get("noise") == "torch":
            return {**request_, "generator": generators}
        return {**request_, "seeds": [5, 6, 7]}

    eager, other = pair(make_unet(), **options)
    wanted, found = (one.sample(progress=False, **request()) for one in (eager, other))
    assert float((found - wanted).abs().max()) < SAME_IMAGES
    assert other.memory() > eager.memory()


def test_learned_variance_a_condition_and_trajectories():
    learned = make_unet(UNetConfig(**{**TINY.to_dict(), "out_channels": 6}))
    check_same(*pair(learned, variance_type="learned_range"))
    config = UNetConfig(in_channels=6, out_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4)
    eager, other = pair(make_unet(config))
    condition = torch.randn(3, 3, 8, 8)
    check_same(eager, other, condition=condition)
    two = [
        one.sample_trajectory(seeds=[1], condition=condition[:1], progress=False) for one in (eager, other)
    ]
    assert float((two[0] - two[1]).abs().max()) < SAME_IMAGES


class Foreign(nn.Module):
    """A network of somebody else, with a condition of its own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x, t):
        return torch.tanh(self.inner(x)) * (1 + t.float()[:, None, None, None] / 1000)


def test_a_foreign_network_and_a_function_around_one():
    torch.manual_seed(0)
    model = Foreign()
    check_same(*pair(model))
    check_same(*pair(lambda x, t: 0.5 * model(x, t)))


def _train(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))


def _swap_filters(model):
    """Content that a sum over the weights would not see, past the version counter."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data.copy_(parameter.data.flip(0))


def _replace(model):
    model.conv_in = nn.Conv2d(3, model.conv_in.out_channels, 3, padding=1)


def _hook(model):
    model.conv_out.register_forward_hook(lambda module, inputs, output: 0.5 * output)


@pytest.mark.parametrize("change", [_train, _swap_filters, _replace, _hook])
def test_a_changed_model_is_handed_over_again(change):
    model = make_unet()
    eager, other = pair(model)
    before = other.sample(seeds=[1], progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.sample(seeds=[1], progress=False)
    change(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = other.sample(seeds=[1], progress=False)
    wanted = eager.sample(seeds=[1], progress=False)
    assert float((found - wanted).abs().max()) < SAME_IMAGES
    assert float((found - before).abs().max()) > 10 * SAME_IMAGES
    # A loop is of tensors in their places, and of hooks: with others begins another loop.
    is_said = any("the model has changed, and to hand it over again took" in str(one.message) for one in said)
    assert is_said == (change not in (_replace, _hook))


def test_another_number_of_threads_is_followed():
    _, other = pair(make_unet())
    before, threads = other.sample(seeds=[1], progress=False), torch.get_num_threads()
    try:
        torch.set_num_threads(1 + threads % 2)
        after = other.sample(seeds=[1], progress=False)
    finally:
        torch.set_num_threads(threads)
    assert float((after - before).abs().max()) < SAME_IMAGES


def test_diffusers_draws_its_own_images_by_it():
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    unet = diffusers.UNet2DModel(
        8, 3, 3, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, **blocks
    )
    pipeline = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    fast = fastddpm.optimize(pipeline, engine=ENGINE)
    draw = {"batch_size": 2, "num_inference_steps": 4, "output_type": "np"}
    wanted = pipeline(generator=torch.Generator().manual_seed(3), **draw).images
    found = fast(generator=torch.Generator().manual_seed(3), **draw).images
    assert abs(found - wanted).max() < SAME_IMAGES
    assert f"engine    {ENGINE}" in str(fast.report())


def test_lucidrains_with_self_conditioning():
    """The last x0 is an input of the network, and is the chain's own when it begins anew."""
    theirs = pytest.importorskip("denoising_diffusion_pytorch")
    torch.manual_seed(0)
    unet = theirs.Unet(8, dim_mults=(1, 2), self_condition=True, flash_attn=False)
    diffusion = theirs.GaussianDiffusion(unet, image_size=8, timesteps=4)
    fast = fastddpm.optimize(diffusion, engine=ENGINE)
    for _ in range(2):
        torch.manual_seed(1)
        wanted = diffusion.sample(batch_size=2)
        torch.manual_seed(1)
        assert float((fast.sample(batch_size=2) - wanted).abs().max()) < SAME_IMAGES


class Complicated(nn.Module):
    """Of operators that ONNX has not."""

    def forward(self, x, t):
        return torch.special.bessel_j0(x)


class Random(nn.Module):
    """Its outputs are others each time."""

    def forward(self, x, t):
        return x + torch.rand_like(x)


def test_what_cannot_be_handed_over_is_said():
    _, other = pair(Complicated())
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match=r"cannot express the model in ONNX.*bessel_j0"):
            other.sample(seeds=[1], progress=False)
    _, other = pair(Random())
    with pytest.raises(EngineUnavailable, match="other outputs than the model"):
        other.sample(seeds=[1], progress=False)


def test_where_it_does_not_run(monkeypatch):
    model = make_unet()
    half = Sampler(model.to(torch.bfloat16), NoiseSchedule.linear(), engine="onnxruntime", **OPTIONS)
    with pytest.raises(
        EngineUnavailable, match=r"'onnxruntime' computes in float32 and the model in torch.bfl"
    ):
        half.sample(seeds=[1], progress=False)
    with pytest.raises(EngineUnavailable, match="'onnxruntime' runs on a CPU and the model is on 'cuda'"):
        Sampler(model, NoiseSchedule.linear(), engine=ENGINE, device="cuda", **OPTIONS)
    monkeypatch.setattr(sessions, "find_spec", lambda name: None if name in absent else name)
    absent = ["onnx"]  # without which torch traces nothing
    with pytest.raises(EngineUnavailable, match="'onnxruntime' needs onnx, not installed here"):
        Sampler(model, NoiseSchedule.linear(), engine=ENGINE, **OPTIONS)
    absent = ["onnxruntime"]
    with pytest.raises(
        EngineUnavailable, match=r"'onnxruntime' needs onnxruntime, .* pip install 'fastddpm\[onnx\]'"
    ):
        Sampler(model, NoiseSchedule.linear(), engine=ENGINE, **OPTIONS)


def _draw(sampler, pipe):
    pipe.send(sampler.sample(seeds=[1], progress=False).numpy())


def test_a_child_of_a_fork_has_a_session_of_its_own():
    """The threads of the parent's are not there: waiting for them it would never end."""
    _, other = pair(make_unet())
    wanted = other.sample(seeds=[1], progress=False)
    mine, its = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=_draw, args=(other, its))
    process.start()
    assert mine.poll(120)
    found = torch.from_numpy(mine.recv())
    process.join(20)
    assert process.exitcode == 0
    assert float((found - wanted).abs().max()) < SAME_IMAGES

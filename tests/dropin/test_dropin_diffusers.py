"""Drop-ins for diffusers' pipelines against the pipelines themselves: images, random stream, call, counts."""

import hashlib
import types
import warnings

import numpy as np
import pytest
import torch

import fastddpm
from fastddpm.dropin.network import copied_for
from fastddpm.engine import step as engine_step

diffusers = pytest.importorskip("diffusers")
from diffusers import (  # noqa: E402
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    UNet2DModel,
)

TOLERANCE = 1e-4
"""Largest difference of two images in [-1, 1], over a whole chain in float32."""


def make_unet(channels=3, out_channels=None, size=8, seed=0, **options):
    torch.manual_seed(seed)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out_channels or channels,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **options,
    ).eval()


class Linear(torch.nn.Module):
    """A network of one convolution: what a UNet2DModel shows of itself, and long chains in seconds."""

    dtype = torch.float32

    def __init__(self, channels=1, out_channels=None, size=(4, 6)):
        super().__init__()
        self.config = types.SimpleNamespace(
            sample_size=size, in_channels=channels, out_channels=out_channels or channels
        )
        torch.manual_seed(4)
        self.conv = torch.nn.Conv2d(channels, out_channels or channels, 3, padding=1)

    def forward(self, x, t):
        assert t.dtype == torch.int64
        t = t.reshape(-1, 1, 1, 1) / 1000
        return types.SimpleNamespace(sample=torch.tanh(self.conv(x) * (1 + t)) + 0.8 * x.mean() * t)


class Pipe:
    """What a pipeline of this kind is made of, for a network that is no diffusers model."""

    def __init__(self, cls, unet, scheduler):
        self.unet, self.scheduler, self._execution_device = unet, scheduler, torch.device("cpu")
        self.call = types.MethodType(cls.__call__, self)

    def progress_bar(self, values):
        return values

    def maybe_free_model_hooks(self):
        pass

    def numpy_to_pil(self, images):
        return diffusers.DiffusionPipeline.numpy_to_pil(images)


class DDPMPipe(Pipe):
    def __call__(
        self, batch_size=1, generator=None, num_inference_steps=1000, output_type="pil", return_dict=True
    ):
        return self.call(batch_size, generator, num_inference_steps, output_type, return_dict)


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ddpm(unet=None, **config):
    return quiet(DDPMPipeline(unet or make_unet(), DDPMScheduler(**config)))


def ddim(unet=None, **config):
    return quiet(DDIMPipeline(unet or make_unet(), DDIMScheduler(**config)))


def hold(pipeline, *, seed=5, fast=None, tolerance=TOLERANCE, **call):
    """The same images and the same state of torch's generator afterwards; the images, in [-1, 1]."""
    fast = fast or fastddpm.optimize(pipeline)
    call = {"batch_size": 2, "output_type": "pt", **call}
    torch.manual_seed(seed)
    expected = pipeline(**call).images
    theirs = torch.get_rng_state()
    torch.manual_seed(seed)
    got = fast(**call).images
    assert torch.get_rng_state().equal(theirs), "the random stream was consumed differently"
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    assert torch.isfinite(expected).all()
    assert 2 * (got - expected).abs().max() <= tolerance
    assert expected.std() > 0.01
    return 2 * got - 1


DDPM_CONFIGS = [
    {"prediction_type": "sample"},
    {"prediction_type": "v_prediction", "clip_sample": False},
    {"variance_type": "fixed_small_log"},
    {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
    {"clip_sample_range": 0.6, "timestep_spacing": "linspace"},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.7},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 3},
    {"num_train_timesteps": 40, "trained_betas": np.linspace(1e-3, 0.2, 40).tolist()},
]


@pytest.mark.parametrize("config", DDPM_CONFIGS, ids=str)
def test_ddpm_pipeline(config):
    hold(ddpm(**config), num_inference_steps=12)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "sigmoid"])
def test_ddpm_pipeline_over_50_steps(schedule):
    hold(ddpm(beta_schedule=schedule), num_inference_steps=50)


@pytest.mark.parametrize(
    "config", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"prediction_type": "sample"}]
)
def test_ddpm_pipeline_over_1000_steps(config):
    hold(DDPMPipe(DDPMPipeline, Linear(), DDPMScheduler(**config)), num_inference_steps=1000)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_over_1000_steps(eta):
    pipeline = ddim(size_unet())
    hold(pipeline, num_inference_steps=1000, eta=eta, batch_size=1)


def size_unet():
    """The smallest UNet2DModel, of one channel and another shape."""
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=(4, 8),
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4,),
        norm_num_groups=2,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
    ).eval()


@pytest.mark.parametrize("variance_type", ["learned_range", "learned"])
def test_learned_variance(variance_type):
    unet = Linear(3, 6)
    with torch.no_grad():  # variances have to be positive, or diffusers takes the root of a negative number
        unet.conv.bias[3:] = 3.0
        unet.conv.weight[3:] *= 0.1
    scheduler = DDPMScheduler(variance_type=variance_type)
    pipeline = DDPMPipe(DDPMPipeline, unet, scheduler)
    hold(pipeline, num_inference_steps=50)
    assert "learned variance" in str(fastddpm.optimize(pipeline).report())


@pytest.mark.parametrize("scheduler", [DDIMScheduler(), DPMSolverMultistepScheduler()], ids=["ddim", "2M"])
def test_other_schedulers_in_a_ddpm_pipeline(scheduler):
    hold(quiet(DDPMPipeline(make_unet(), scheduler)), num_inference_steps=15)


@pytest.mark.parametrize("make", [ddpm, ddim])
def test_trailing_with_a_step_too_many(make):
    pipeline = make(timestep_spacing="trailing", num_train_timesteps=60)
    seen = []
    fastddpm.optimize(pipeline)(num_inference_steps=13, callback=lambda k, t, x: seen.append(t))
    assert len(seen) == 14
    assert seen[-1] == -1
    hold(pipeline, num_inference_steps=13)


DDIM_CALLS = [
    {"eta": 0.5},
    {"eta": 1.0, "use_clipped_model_output": True},
    {"use_clipped_model_output": True},
    {"use_clipped_model_output": False},
    {"eta": -0.5},
]


@pytest.mark.parametrize("call", DDIM_CALLS, ids=str)
def test_ddim_calls(call):
    hold(ddim(clip_sample_range=0.8), num_inference_steps=12, **call)


@pytest.mark.parametrize(
    "config",
    [
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        {"prediction_type": "sample", "timestep_spacing": "linspace"},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"thresholding": True, "sample_max_value": 1.5},
        {"timestep_spacing": "trailing", "clip_sample": False, "prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_ddim_pipeline(config):
    hold(ddim(**config), num_inference_steps=30, eta=0.3)


def test_a_ddim_pipeline_converted_from_another_scheduler():
    hold(
        quiet(DDIMPipeline(make_unet(), DDPMScheduler(beta_schedule="scaled_linear"))), num_inference_steps=10
    )


def test_networks_of_other_shapes():
    hold(ddpm(make_unet(1, size=(8, 12))), num_inference_steps=6, batch_size=1)
    hold(ddpm(make_unet(center_input_sample=True)), num_inference_steps=6, batch_size=3)
    hold(ddpm(make_unet(2, 4), variance_type="learned_range"), num_inference_steps=6)


@pytest.mark.parametrize("make", [ddpm, ddim])
def test_generators(make):
    pipeline = make()
    fast = fastddpm.optimize(pipeline)
    call = {"batch_size": 3, "num_inference_steps": 5, "output_type": "np"}
    if make is ddim:
        call["eta"] = 1.0

    def generators(count):
        return [torch.Generator().manual_seed(k) for k in range(count)]

    for count in (None, 1, 3, *((5, "one in a list") if make is ddpm else ())):
        pairs = []
        for each in (pipeline, fast):
            given = generators(1) if count == "one in a list" else generators(count or 1)
            argument = given[0] if count in (None, 1) else given
            pairs.append((each(generator=argument, **call).images, [g.get_state() for g in given]))
        (expected, theirs), (got, ours) = pairs
        assert 2 * np.abs(got - expected).max() <= TOLERANCE
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    with pytest.raises(ValueError, match="generator: 2 for 3 images given"):
        fast(generator=generators(2), **call)


def test_results_are_the_originals():
    pipeline = ddpm()
    fast = fastddpm.optimize(pipeline)
    for output_type in ("pil", "np", "pt", None):
        results = []
        for each in (pipeline, fast):
            torch.manual_seed(0)
            results.append(each(2, num_inference_steps=3, output_type=output_type))
        expected, got = results
        assert type(got) is type(expected)
        assert type(got.images) is type(expected.images)
        if output_type == "pil":
            assert [image.size for image in got.images] == [image.size for image in expected.images]
            for ours, theirs in zip(got.images, expected.images, strict=True):
                assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 1
        else:
            assert got.images.shape == expected.images.shape
    (images,) = fast(1, None, 3, "np", False)
    assert images.shape == (1, 8, 8, 3)
    # Arguments by position, in the original's order.
    torch.manual_seed(1)
    (expected,) = quiet(ddim())(2, None, 0.5, 4, True, "np", False)
    torch.manual_seed(1)
    (got,) = fastddpm.optimize(ddim())(2, None, 0.5, 4, True, "np", False)
    assert 2 * np.abs(got - expected).max() <= TOLERANCE


def fingerprint(pipeline):
    """Everything that a call could change."""
    weights = hashlib.sha256()
    for value in pipeline.unet.state_dict().values():
        weights.update(value.numpy().tobytes())
    scheduler = {
        k: v.tolist() if torch.is_tensor(v) else repr(v) for k, v in vars(pipeline.scheduler).items()
    }
    training = [module.training for module in pipeline.unet.modules()]
    attributes = {k: id(v) for k, v in vars(pipeline).items()}
    return weights.hexdigest(), repr(scheduler), training, attributes, dict(vars(pipeline.unet.config))


def test_the_original_is_left_alone():
    pipeline = DDPMPipeline(make_unet(), DDPMScheduler())
    pipeline.unet.down_blocks[0].train()
    before, state = fingerprint(pipeline), torch.get_rng_state()
    fast = fastddpm.optimize(pipeline)
    assert torch.get_rng_state().equal(state)
    fast.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    fast(num_inference_steps=3, generator=generator)
    fast.sample_trajectory(num_inference_steps=3, generator=generator)
    assert str(fast.report())
    assert torch.get_rng_state().equal(state)
    assert fingerprint(pipeline) == before
    assert fast.original is pipeline
    assert fast.components.keys() == pipeline.components.keys()


@pytest.mark.parametrize("make", [ddpm, ddim])
def test_it_is_our_loop(make, monkeypatch):
    """No call of the original's step or set_timesteps, one reverse_step a step."""
    pipeline = make()
    fast = fastddpm.optimize(pipeline)

    def forbidden(*args, **kwargs):
        raise AssertionError("the original's code ran")

    for cls in (DDPMScheduler, DDIMScheduler):
        for name in ("step", "set_timesteps", "_get_variance"):
            monkeypatch.setattr(cls, name, forbidden)
    calls = []
    monkeypatch.setattr(
        engine_step, "reverse_step", lambda *a, f=engine_step.reverse_step, **k: (calls.append(1), f(*a, **k))
    )
    fast(num_inference_steps=7)
    assert len(calls) == 7


def test_no_host_reads_inside_a_step(monkeypatch):
    fast = fastddpm.optimize(ddpm(variance_type="fixed_large"))

    def forbidden(*args, **kwargs):
        raise AssertionError("a tensor was read on the host")

    def watched(*args, step=engine_step.step, **kwargs):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
                patch.setattr(torch.Tensor, name, forbidden)
            step(*args, **kwargs)

    monkeypatch.setattr("fastddpm.engine.loop.step", watched)
    fast(num_inference_steps=4)
    with pytest.raises(AssertionError, match="read on the host"):
        fastddpm.optimize(DDPMPipe(DDPMPipeline, Reads(), DDPMScheduler()))(num_inference_steps=2)


class Reads(Linear):
    def forward(self, x, t):
        return super().forward(x, t) if t[0].item() >= 0 else None


def test_recognised_by_what_it_holds():
    pipeline = ddpm()
    Renamed = type("Mine", (DDPMPipeline,), {"__module__": "my_project"})
    Schedule = type("MySchedule", (DDPMScheduler,), {"__module__": "my_project"})
    renamed = quiet(Renamed(pipeline.unet, Schedule()))
    hold(renamed, num_inference_steps=4)
    hold(DDPMPipe(DDPMPipeline, Linear(), DDPMScheduler()), num_inference_steps=4)
    parallel = quiet(DDPMPipeline(pipeline.unet, diffusers.DDPMParallelScheduler()))
    hold(parallel, num_inference_steps=4)
    for other in (DDPMPipeline, pipeline.unet, object(), types.SimpleNamespace(unet=1, scheduler=2)):
        with pytest.raises(fastddpm.dropin.Unrecognised, match="DDPMPipeline and DDIMPipeline"):
            fastddpm.optimize(other)


def test_class_labels():
    """A class-conditional UNet, which the original cannot call: against it with the labels bound."""
    unet = make_unet(num_class_embeds=5)
    labels = torch.tensor([4, 0])
    pipeline = ddpm(unet)
    fast = fastddpm.optimize(pipeline)
    with torch.no_grad():  # or the classes would hardly matter
        unet.class_embedding.weight.mul_(3)
    torch.manual_seed(2)
    got = fast(2, num_inference_steps=8, output_type="pt", class_labels=labels).images

    class Bound(torch.nn.Module):
        config, dtype = unet.config, torch.float32

        def forward(self, x, t):
            return unet(x, t, class_labels=labels)

    torch.manual_seed(2)
    expected = DDPMPipe(DDPMPipeline, Bound(), DDPMScheduler())(
        2, num_inference_steps=8, output_type="pt"
    ).images
    assert 2 * (got - expected).abs().max() <= TOLERANCE
    torch.manual_seed(2)
    other = fast(2, num_inference_steps=8, output_type="pt", class_labels=1).images
    assert (got - other).abs().max() > 1e-3
    for bad in (5, -1, [1], [1, 2, 3], [0.5, 1.0], None):
        with pytest.raises(ValueError, match="class_labels"):
            fast(2, num_inference_steps=2, class_labels=bad)
    with pytest.raises(ValueError, match="without classes"):
        fastddpm.optimize(ddpm())(2, num_inference_steps=2, class_labels=1)


def test_seeds_and_philox():
    fast = fastddpm.optimize(ddim(), noise="philox")
    call = {"num_inference_steps": 6, "eta": 1.0, "output_type": "pt"}
    both = fast(seeds=[3, 2**40], **call).images
    alone = fast(seeds=[2**40], **call).images
    assert both.shape == (2, 3, 8, 8)
    # Convolutions may sum in another order in another batch size.
    assert (both[1] - alone[0]).abs().max() <= 1e-3
    assert (both[0] - both[1]).abs().max() > 1e-2
    with pytest.raises(ValueError, match="seeds: 2 for 3 images given"):
        fast(3, seeds=[1, 2], **call)
    with pytest.raises(ValueError, match="seeds"):
        fastddpm.optimize(ddim())(seeds=[1], **call)


def test_callback_and_trajectory():
    pipeline = ddim()
    fast = fastddpm.optimize(pipeline)
    seen = []
    torch.manual_seed(0)
    images = fast(
        2, num_inference_steps=4, output_type="pt", callback=lambda k, t, x: seen.append((k, t, x.clone()))
    ).images
    assert [(k, t) for k, t, _ in seen] == [(0, 750), (1, 500), (2, 250), (3, 0)]
    torch.manual_seed(0)
    states = fast.sample_trajectory(2, num_inference_steps=4)
    assert states.shape == (5, 2, 3, 8, 8)
    torch.manual_seed(0)
    assert states[0].equal(torch.randn(2, 3, 8, 8))
    for k in range(4):
        assert states[k + 1].equal(seen[k][2])
    assert images.equal((states[-1] / 2 + 0.5).clamp(0, 1))
    torch.manual_seed(0)
    predicted = fast.sample_trajectory(2, num_inference_steps=4, predicted=True, frames=2)
    assert predicted.shape == (2, 2, 3, 8, 8)
    assert predicted.abs().max() <= 1
    assert predicted[-1].equal(states[-1])  # DDIM's last step goes to x0 itself
    with pytest.raises(ValueError, match="frames"):
        fast.sample_trajectory(num_inference_steps=4, frames=6)


def test_half_precision_draws_as_the_original():
    """bfloat16 pipelines draw in bfloat16; our state is float32, so images are near and no more."""
    unet = make_unet().to(torch.bfloat16)
    pipeline = ddpm(unet)
    fast = fastddpm.optimize(pipeline)
    torch.manual_seed(1)
    expected = pipeline(2, num_inference_steps=6, output_type="pt").images
    state = torch.get_rng_state()
    torch.manual_seed(1)
    got = fast(2, num_inference_steps=6, output_type="pt").images
    assert torch.get_rng_state().equal(state)
    assert got.dtype == expected.dtype == torch.bfloat16
    assert (got - expected).abs().mean() < 0.02
    assert fast(num_inference_steps=2, output_type="np").images.dtype == np.float32


def test_dtype_follows_the_weights():
    pipeline = ddpm()
    before = fingerprint(pipeline)
    fast = fastddpm.optimize(pipeline, dtype=torch.bfloat16)
    call = {"batch_size": 2, "num_inference_steps": 4, "output_type": "pt"}

    def drawn(each):
        torch.manual_seed(0)
        return each(**call).images

    first = drawn(fast)
    assert first.dtype == torch.float32
    assert (first - drawn(pipeline)).abs().mean() < 0.02
    assert "bfloat16" in str(fast.report())
    assert fingerprint(pipeline)[0] == before[0]
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(-1)
    assert (drawn(fast) - first).abs().mean() > 0.02
    assert (drawn(fast) - drawn(pipeline)).abs().mean() < 0.02


def test_what_changes_at_the_original_is_seen():
    pipeline = ddpm()
    fast = fastddpm.optimize(pipeline)
    hold(pipeline, fast=fast, num_inference_steps=4)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(2)
    hold(pipeline, fast=fast, num_inference_steps=4)
    pipeline.scheduler = DDIMScheduler(prediction_type="sample")
    hold(pipeline, fast=fast, num_inference_steps=4)
    pipeline.unet = make_unet(seed=9)
    hold(pipeline, fast=fast, num_inference_steps=4)
    pipeline.scheduler = diffusers.EulerDiscreteScheduler()
    with pytest.raises(ValueError, match="EulerDiscreteScheduler"):
        fast(num_inference_steps=4)
    with pytest.raises(AttributeError):
        fast.scheduler = DDIMScheduler()


def test_options_for_what_the_original_gets_wrong():
    broken = ddpm(variance_type="fixed_large_log")
    with pytest.raises(ValueError, match="NaN"):
        fastddpm.optimize(broken)
    meant = ddpm(broken.unet, variance_type="fixed_large")
    hold(meant, fast=fastddpm.optimize(broken, variance_type="fixed_large"), num_inference_steps=5)

    # 1000 of linspace's 50 steps: diffusers goes from t to t - 20, the consistent form to the next.
    pipeline = ddim(timestep_spacing="linspace")
    consistent = fastddpm.optimize(pipeline, previous_timestep="consistent")
    schedule = fastddpm.NoiseSchedule.linear(1000)
    sampler = fastddpm.Sampler.from_plan(
        pipeline.unet,
        schedule,
        fastddpm.ddim_plan(schedule, 50, timestep_spacing="linspace", clip_sample_range=1.0),
        shape=(3, 8, 8),
    )
    torch.manual_seed(0)
    got = 2 * consistent(2, num_inference_steps=50, output_type="pt").images - 1
    torch.manual_seed(0)
    expected = sampler.sample(2, noise="torch", progress=False)
    assert (got - expected.clamp(-1, 1)).abs().max() <= 1e-3  # float32 tables against float64
    torch.manual_seed(0)
    habit = 2 * pipeline(2, num_inference_steps=50, output_type="pt").images - 1
    assert (got - habit).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: ddpm(make_unet(2, 4)), {}, "variance_type: fixed_small"),
        (ddpm, {"variance_type": "huge"}, "variance_type: .* given, one of"),
        (ddpm, {"previous_timestep": "next"}, "previous_timestep: .* given, one of"),
        (ddpm, {"steps": 3}, "steps: unknown to this drop-in, given, variance_type, previous_timestep"),
        (
            lambda: ddpm(clip_sample=False, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            {},
            "zero",
        ),
    ],
)
def test_refused_when_built(make, options, message):
    with pytest.raises(ValueError, match=message):
        fastddpm.optimize(make(), **options)


def test_refused_when_called():
    fast = fastddpm.optimize(ddim())
    for steps in (0, 1001, 2.5):
        with pytest.raises(ValueError, match="num_inference_steps"):
            fast(num_inference_steps=steps)
    with pytest.raises(ValueError, match="eta"):
        fast(eta=float("nan"))
    with pytest.raises(ValueError, match="batch_size"):
        fast(0)
    with pytest.raises(TypeError, match="guidance"):
        fast(guidance=3)
    pipeline = ddim()
    fast = fastddpm.optimize(pipeline)
    pipeline.scheduler = DDPMScheduler()
    with pytest.raises(ValueError, match="scheduler: DDPMScheduler given, a DDIMScheduler by a DDIMPipeline"):
        fast()


def test_a_network_in_training_mode_is_named():
    unet = make_unet(dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastddpm.optimize(ddpm(unet))
    unet.train()
    with pytest.warns(UserWarning, match="training mode"):
        fast = fastddpm.optimize(ddpm(unet))
    torch.manual_seed(0)
    got = fast(num_inference_steps=3, output_type="pt").images
    assert unet.training
    torch.manual_seed(0)
    expected = ddpm(unet.eval())(num_inference_steps=3, output_type="pt").images
    assert 2 * (got - expected).abs().max() <= TOLERANCE


def test_report_and_saving(tmp_path):
    pipeline = ddpm(thresholding=True)
    fast = fastddpm.optimize(pipeline)
    text = str(fast.report())
    for part in ("DDPMPipeline with DDPMScheduler", "UNet2DModel", "eager", "dynamic thresholding"):
        assert part in text
        assert part in repr(fast)
    fast.save_pretrained(tmp_path)
    again = quiet(DDPMPipeline.from_pretrained(tmp_path))
    assert type(again.scheduler) is DDPMScheduler
    hold(again, fast=fast, num_inference_steps=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_our_network_stands_in_for_weights_of_any_dtype(dtype):
    """As on a GPU; the original's images, but for what half precision rounds in another order."""
    pipeline = ddpm(make_unet().to(dtype))
    fast = fastddpm.optimize(pipeline, network="ours")
    assert "our UNet with its weights, outputs within" in str(fast.report())
    # In bfloat16 each is 0.04 to 0.07 from float32's images; in float16, eight times as fine, 0.006.
    tolerance = {torch.float32: TOLERANCE, torch.bfloat16: 2 * 0.07, torch.float16: 2 * 0.07 / 8}[dtype]
    hold(pipeline, fast=fast, num_inference_steps=5, tolerance=tolerance)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(2)
        pipeline.unet.mid_block.attentions[0].to_k.weight.mul_(3)
    hold(pipeline, fast=fast, num_inference_steps=5, tolerance=tolerance)


def test_which_network_runs():
    """Ours on a GPU, if it fits, and where chains are compiled; the original where that is asked for."""
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    fast = {name: fastddpm.optimize(ddpm(), network=name) for name in ("auto", "original", "ours")}
    found = {name: one._network().unet is not None for name, one in fast.items()}
    assert found == {"auto": False, "original": False, "ours": True}
    assert not fast["auto"]._is_faster_as_ours(cpu, torch.float32)
    assert fast["auto"]._is_faster_as_ours(cuda, torch.float32)
    compiled = fastddpm.optimize(ddpm(), engine="compile")
    assert compiled._network().unet is not None
    with pytest.raises(ValueError, match="network: 'mine' given, one of auto, original, ours accepted"):
        fastddpm.optimize(ddpm(), network="mine")
    altered = ddpm()
    altered.unet.mid_block.attentions[0].rescale_output_factor = 2.0
    with pytest.raises(ValueError, match=r"network: 'ours', but of another architecture"):
        fastddpm.optimize(altered, network="ours").report()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_network_that_is_not_ours_is_arranged_on_a_gpu(dtype):
    pipeline = ddpm()
    unet = pipeline.unet
    unet.mid_block.attentions[0].rescale_output_factor = 2.0
    before = {name: (value.clone(), value.stride()) for name, value in unet.state_dict().items()}
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert copied_for(unet, cpu, None, may_arrange=True) is None
    copied = copied_for(unet, cuda, dtype, may_arrange=True)
    convolutions = [part for part in copied.module.modules() if isinstance(part, torch.nn.Conv2d)]
    assert all(part.weight.is_contiguous(memory_format=torch.channels_last) for part in convolutions)
    assert len(copied.fused.replaced) > 5
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        for factor in (1.0, 1.5):
            for parameter in unet.parameters():
                parameter.data.mul_(factor)
            copied.copies().refresh()
            theirs = unet(x, t).sample
            ours = copied.module(x.to(dtype or x.dtype), t).sample
            assert (ours - theirs).abs().max() <= (1e-5 if dtype is None else 0.1) * theirs.abs().max()
            unet.load_state_dict({name: value for name, (value, _) in before.items()}, assign=factor == 1.0)
    assert all(torch.equal(unet.state_dict()[name], value) for name, (value, _) in before.items())
    assert not any("forward" in part.__dict__ for part in unet.modules())


@pytest.mark.parametrize("learned", [False, True])
def test_a_network_that_is_not_ours_runs_as_on_a_gpu(learned, monkeypatch):
    """The whole way, with the device taken for one of CUDA; weights changed in between are used."""
    from fastddpm.dropin import network as choice
    from fastddpm.dropin._diffusers import pipeline as module

    network = make_unet(out_channels=6 if learned else None)
    network.mid_block.attentions[0].rescale_output_factor = 2.0
    pipeline = ddpm(network, variance_type="learned_range" if learned else "fixed_small")
    fast = fastddpm.optimize(pipeline)
    seen = module.model_device_dtype
    for place in (module, choice):
        monkeypatch.setattr(place, "model_device_dtype", lambda unet: (torch.device("cuda"), seen(unet)[1]))
    monkeypatch.setattr(module, "resolve_engine", lambda engine, device: "eager")
    assert (
        "the original module (of another architecture than our UNet's), in channels_last, its norms"
        in str(fast.report())
    )
    hold(pipeline, fast=fast, num_inference_steps=5)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(2)
        pipeline.unet.time_embedding.linear_1.weight.mul_(2)
    hold(pipeline, fast=fast, num_inference_steps=5)
    pipeline.unet.load_state_dict(pipeline.unet.state_dict(), assign=True)
    hold(pipeline, fast=fast, num_inference_steps=5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_network_whose_norms_disagree_once_fused_runs_unfused(dtype, monkeypatch):
    """A block that holds what diffusers' does and computes something else; on a GPU as above."""
    from diffusers.models.resnet import ResnetBlock2D

    from fastddpm.dropin import network as choice
    from fastddpm.dropin._diffusers import pipeline as module

    class Halved(ResnetBlock2D):
        def forward(self, *given, **options):
            return 0.5 * super().forward(*given, **options)

    pipeline = ddpm()
    pipeline.unet.mid_block.resnets[0].__class__ = Halved
    fast, plain = (fastddpm.optimize(pipeline, dtype=dtype) for _ in range(2))
    expected = plain(2, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="pt")
    seen = module.model_device_dtype
    for place in (module, choice):
        monkeypatch.setattr(place, "model_device_dtype", lambda unet: (torch.device("cuda"), seen(unet)[1]))
    monkeypatch.setattr(module, "resolve_engine", lambda engine, device: "eager")
    found = str(fast.report())
    assert "), in channels_last, its norms not fused (mid_block.resnets.0: another" in found
    assert ("copied to torch.bfloat16" in found) == (dtype is not None)
    images = fast(2, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="pt")
    # Convolutions of bfloat16 may sum in another order in channels_last.
    limit = TOLERANCE if dtype is None else 0.05
    assert (images.images - expected.images).abs().max() <= limit
    assert fast._network()._copied.fused.replaced == []
    assert not any("forward" in part.__dict__ for part in fast._network()._copied.module.modules())


def test_weights_that_convolutions_share_stay_one():
    from fastddpm.dropin.arranged import ForGpu

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3), torch.nn.Conv2d(3, 3, 3))
    network[1].weight = network[0].weight
    copied = ForGpu(network)
    assert copied.module[0].weight is copied.module[1].weight
    with torch.no_grad():
        network[0].weight.data.mul_(2)
        copied.copies().refresh()
        x = torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(copied.module(x), network(x))


@pytest.mark.slow
def test_compiled(traced):
    pipeline = ddpm()
    fast = fastddpm.optimize(pipeline, engine="compile")
    assert "our UNet with its weights" in str(fast.report())
    hold(pipeline, fast=fast, num_inference_steps=10)
    merged = fast._network().unet.mid[0].attention.qkv.weight.data_ptr()
    # One that our network shares, and one of three that it keeps as one tensor.
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(2)
        pipeline.unet.mid_block.attentions[0].to_k.weight.mul_(3)
    hold(pipeline, fast=fast, num_inference_steps=10)
    # Where it was, so that nothing is compiled again.
    assert fast._network().unet.mid[0].attention.qkv.weight.data_ptr() == merged
    pipeline.unet.load_state_dict(make_unet(seed=9).state_dict(), assign=True)
    hold(pipeline, fast=fast, num_inference_steps=10)


def test_compiled_networks_that_are_not_ours(traced):
    pipeline = ddpm()
    fast = fastddpm.optimize(pipeline, engine="compile")
    fast.report()
    pipeline.unet.conv_in.register_forward_hook(lambda module, given, out: 0.5 * out)
    assert "the original module" in str(fast.report())
    hold(pipeline, fast=fast, num_inference_steps=10)
    altered = ddpm()
    altered.unet.mid_block.attentions[0].rescale_output_factor = 2.0
    fast = fastddpm.optimize(altered, engine="compile")
    assert "the original module" in str(fast.report())

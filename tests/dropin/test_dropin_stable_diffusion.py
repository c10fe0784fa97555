"""Drop-ins for Stable Diffusion's pipelines against these themselves: latents, random stream, call."""

import types
from pathlib import Path

import pytest
import torch

import fastddpm
from fastddpm.dropin.network import copied_for
from fastddpm.engine import executors
from fastddpm.engine import step as engine_step

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import diffusers
from diffusers import DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from latent_pipelines import (
    TOLERANCE,
    ddim,
    drawn,
    embeds,
    forbid_steps,
    hold,
    remembered,
    solver,
    tensor,
    text_pipeline,
    text_unet,
    tokenizer,
)
from replay import RecordingBackend

CALL = {"num_inference_steps": 4, "output_type": "latent"}


@pytest.fixture(scope="module")
def pipeline():
    return text_pipeline()


@pytest.fixture(scope="module")
def fast(pipeline):
    return fastddpm.optimize(pipeline)


@pytest.fixture(scope="module")
def from_image():
    return text_pipeline(StableDiffusionImg2ImgPipeline)


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"guidance_scale": 1.0},
        {"guidance_scale": 0.5},
        {"guidance_rescale": 0.7, "guidance_scale": 3.0},
        {"eta": 1.0},
        {"eta": 0.4, "num_images_per_prompt": 2},
        {"height": 24, "width": 32},
        {"latents": torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(3))},
        {"generator": lambda: [torch.Generator().manual_seed(k) for k in (4, 9)], "eta": 0.5},
        {"generator": lambda: None, "eta": 0.5},
        {"output_type": "pt"},
        {"output_type": "np"},
    ],
    ids=lambda call: " ".join(f"{name}" for name in call) or "as it is",
)
def test_text_to_image(pipeline, fast, call):
    hold(pipeline, fast, **{**embeds(), **CALL, **call})


@pytest.mark.parametrize(
    "scheduler",
    [
        solver(),
        solver(solver_order=1, prediction_type="v_prediction"),
        ddim(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"),
        DDPMScheduler(variance_type="fixed_large", clip_sample=False, steps_offset=1),
    ],
    ids=["2M", "1, v", "DDIM, v, zero", "DDPM"],
)
def test_schedulers(scheduler):
    hold(text_pipeline(scheduler=scheduler), **embeds(), **{**CALL, "num_inference_steps": 10})


def test_it_is_our_loop(pipeline, fast, monkeypatch):
    """No step of the original's scheduler, one reverse_step a step, the pipeline as it was."""
    forbid_steps(monkeypatch, pipeline.scheduler)
    calls = []
    monkeypatch.setattr(
        engine_step, "reverse_step", lambda *a, f=engine_step.reverse_step, **k: (calls.append(1), f(*a, **k))
    )
    before = remembered(pipeline)
    drawn(fast, **embeds(), **CALL)
    assert len(calls) == 4
    assert remembered(pipeline) == before


def test_prompts(tmp_path):
    pipeline = text_pipeline(words=tokenizer(tmp_path))
    encoder = pipeline.text_encoder
    if not hasattr(encoder, "text_model"):  # where diffusers 0.42 looks for it and transformers 5 has it not
        encoder.text_model = types.SimpleNamespace(final_layer_norm=encoder.final_layer_norm)
    fast = fastddpm.optimize(pipeline)
    call = {**CALL, "num_inference_steps": 3}
    cat = hold(pipeline, fast, prompt="a cat", **call)
    dog = hold(pipeline, fast, prompt=["a cat", "dog"], negative_prompt=["rain", "a cat"], **call)
    assert (cat[0] - dog[0]).abs().max() > 1e-3
    hold(pipeline, fast, prompt="a cat", negative_prompt="dog", clip_skip=1, num_images_per_prompt=2, **call)
    # By position, in the original's order, and the names that it asks for.
    torch.manual_seed(0)
    (expected, flagged) = pipeline("a cat", 16, 16, 3, None, None, 2.0, output_type="pil", return_dict=False)
    torch.manual_seed(0)
    (got, ours) = fast("a cat", 16, 16, 3, None, None, 2.0, output_type="pil", return_dict=False)
    assert flagged is None
    assert ours is None
    assert (tensor(got) - tensor(expected)).abs().max() <= 1
    page = (Path(__file__).parents[2] / "docs" / "dropin.md").read_text().split("### Latents")[1]
    names = {"pipeline": pipeline, "fastddpm": fastddpm, "generator": torch.Generator().manual_seed(3)}
    code = page.split("```python\n")[1].split("```")[0].replace('"a cat"', '"a cat", num_inference_steps=2')
    exec(code, names)
    assert isinstance(names["fast"], type(fast))
    assert len(names["images"]) == 1
    result = fast("a cat", num_inference_steps=1)
    assert type(result) is type(pipeline("a cat", num_inference_steps=1))


class Extractor:
    def __call__(self, images, return_tensors):
        assert return_tensors == "pt"
        pixels = torch.stack([torch.tensor(image.getpixel((0, 0))) for image in images])
        return Pixels(pixels.float())


class Pixels:
    def __init__(self, pixel_values):
        self.pixel_values = pixel_values

    def to(self, device):
        return self


class Checker(torch.nn.Module):
    """Blackens the first image, as the original's would one that it flags."""

    device = torch.device("cpu")

    def forward(self, images, clip_input):
        assert len(clip_input) == len(images)
        images = images.clone()
        images[0] = 0
        return images, [True, *[False] * (len(images) - 1)]


def test_the_safety_checker_runs_as_it_is():
    pipeline = text_pipeline(safety_checker=Checker(), feature_extractor=Extractor())
    fast = fastddpm.optimize(pipeline)
    call = {**embeds(), **CALL, "num_inference_steps": 2, "output_type": "np"}
    images = hold(pipeline, fast, **call)
    assert images[0].max() == images[0].min()
    assert fast(**call).nsfw_content_detected == [True, False]


def test_a_distilled_network_is_told_the_scale():
    pipeline = text_pipeline(unet=text_unet(time_cond_proj_dim=8))
    fast = fastddpm.optimize(pipeline)
    first = hold(pipeline, fast, guidance_scale=8.0, **embeds(), **CALL)
    other = hold(pipeline, fast, guidance_scale=2.0, **embeds(), **CALL)
    assert (first - other).abs().max() > 1e-3


def both_ways(pipeline, fast, on_end, **call):
    """The images of the two, and what the callback saw."""
    results = []
    for each in (pipeline, fast):
        seen = []

        def watch(pipe, step, timestep, tensors, seen=seen):
            seen.append((step, int(timestep), {name: value for name, value in tensors.items()}))
            return on_end(pipe, step, tensors)

        images, _ = drawn(each, callback_on_step_end=watch, **call)
        results.append((images, seen))
    (expected, theirs), (got, ours) = results
    assert (tensor(got) - tensor(expected)).abs().max() <= TOLERANCE
    assert [one[:2] for one in ours] == [one[:2] for one in theirs]
    for mine, others in zip(ours, theirs, strict=True):
        assert mine[2].keys() == others[2].keys()
        assert all((mine[2][name] - others[2][name]).abs().max() <= TOLERANCE for name in others[2])
    return ours


@pytest.mark.parametrize("scheduler", [ddim, solver])
def test_callbacks(scheduler):
    pipeline = text_pipeline(scheduler=scheduler())
    fast = fastddpm.optimize(pipeline)
    call = {**embeds(), **CALL}
    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    seen = both_ways(
        pipeline, fast, lambda pipe, step, held: {}, callback_on_step_end_tensor_inputs=names, **call
    )
    assert len(seen) == 4
    unguided = {"guidance_scale": 1.0, "callback_on_step_end_tensor_inputs": names, **call}
    both_ways(pipeline, fast, lambda pipe, step, held: {}, **unguided)

    def other_latents(pipe, step, held):
        return {"latents": held["latents"] * 0.5} if step % 2 else {}

    def in_place(pipe, step, held):
        held["latents"][:, 0] += 1
        return held

    def stop(pipe, step, held):
        pipe._interrupt = step == 2
        return held

    plain = drawn(fast, **call)[0]
    for change in (other_latents, in_place, stop):
        seen = both_ways(pipeline, fast, change, **call)
        assert (seen[-1][2]["latents"] - plain).abs().max() > 1e-3
    assert len(seen) == 3

    older = []
    for each in (pipeline, fast):
        held = []
        with pytest.warns(FutureWarning) if each is pipeline else torch.no_grad():
            drawn(
                each,
                callback=lambda k, t, x, held=held: held.append((k, int(t), x)),
                callback_steps=2,
                **call,
            )
        older.append(held)
    assert [one[:2] for one in older[0]] == [one[:2] for one in older[1]]
    assert all((a[2] - b[2]).abs().max() <= TOLERANCE for a, b in zip(*older, strict=True))
    assert len(older[1]) == 2


def test_inference_mode(pipeline, fast):
    call = {**embeds(), **CALL}
    with torch.inference_mode():
        expected = drawn(pipeline, **call)[0]
        got = drawn(fast, callback_on_step_end=lambda pipe, step, t, held: held, **call)[0]
    assert (got - expected).abs().max() <= TOLERANCE
    hold(pipeline, fast, **call)


def test_callbacks_that_change_what_is_fixed_are_refused(fast):
    def texts(pipe, step, timestep, held):
        return {"prompt_embeds": 2 * held["prompt_embeds"]}

    def texts_in_place(pipe, step, timestep, held):
        held["prompt_embeds"].mul_(2)
        return held

    def guidance(pipe, step, timestep, held):
        pipe._guidance_scale = 0.0
        return held

    names = ["latents", "prompt_embeds"]
    for on_end, words in (
        (texts, "changes prompt_embeds"),
        (texts_in_place, "changes prompt_embeds"),
        (guidance, "changes the guidance"),
    ):
        with pytest.raises(ValueError, match=f"callback_on_step_end: one that {words}"):
            fast(callback_on_step_end=on_end, callback_on_step_end_tensor_inputs=names, **embeds(), **CALL)


def test_a_callback_of_diffusers_names_what_it_sees(pipeline, fast):
    from diffusers.callbacks import PipelineCallback

    class Sees(PipelineCallback):
        seen = 0

        @property
        def tensor_inputs(self):
            return ["latents", "prompt_embeds"]

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen += len(callback_kwargs)
            return callback_kwargs

    sees = Sees(cutoff_step_ratio=None, cutoff_step_index=2)
    hold(pipeline, fast, callback_on_step_end=sees, **embeds(), **CALL)
    assert sees.seen == 2 * 2 * 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"ip_adapter_image": 3}, "ip_adapter_image"),
        ({"ip_adapter_image_embeds": [torch.zeros(2, 1, 32)]}, "ip_adapter_image_embeds"),
        ({"cross_attention_kwargs": {"scale": 0.5}}, "cross_attention_kwargs"),
        (
            {"latents": torch.randn(3, 4, 8, 8)},
            r"latents: shape \(3, 4, 8, 8\) given, a tensor \(2, 4, H, W\)",
        ),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_images_per_prompt": 1.5}, "num_images_per_prompt"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"eta": float("inf")}, "eta"),
        ({"height": 20}, "divisible by 8"),
        ({"prompt_embeds": None}, "Provide either"),
        ({"generator": [torch.Generator(), torch.Generator(), torch.Generator()]}, "generators"),
        ({"seeds": [1, 2]}, "seeds"),
        ({"callback": print, "callback_steps": 0}, "callback_steps"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_when_called(fast, call, words):
    with pytest.raises(ValueError, match=words):
        fast(**{**embeds(), **CALL, "width": 16, "height": 16, **call})


def test_arguments_that_nobody_has(fast):
    with pytest.raises(
        TypeError, match="steps: given, beyond the original's seeds, callback, callback_steps"
    ):
        fast(steps=3, **embeds())


def test_refused_when_built():
    pipeline = text_pipeline()
    pipeline.unet.peft_config = {"default": object()}
    with pytest.raises(ValueError, match="unet: one with LoRA weights or other adapters loaded given"):
        fastddpm.optimize(pipeline)
    pipeline = text_pipeline()
    pipeline.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(ValueError, match="unet: one with an IP-Adapter given"):
        fastddpm.optimize(pipeline)
    with pytest.raises(ValueError, match="network: 'ours', but of another architecture"):
        fastddpm.optimize(text_pipeline(), network="ours").report()
    with pytest.raises(ValueError, match="noise: 'philox' for a pipeline that draws the latents"):
        fastddpm.optimize(text_pipeline(StableDiffusionImg2ImgPipeline), noise="philox")
    with pytest.raises(ValueError, match="variance_type: a learned one, which the original guides"):
        fastddpm.optimize(
            text_pipeline(scheduler=DDPMScheduler(variance_type="learned_range", steps_offset=1))
        )
    offloaded = text_pipeline()
    offloaded.unet.conv_in._hf_hook = object()
    with pytest.raises(ValueError, match="unet: one with the hooks of CPU offloading"):
        fastddpm.optimize(offloaded)
    depth = text_pipeline()
    depth.image_processor = diffusers.image_processor.VaeImageProcessorLDM3D()
    with pytest.raises(fastddpm.dropin.Unrecognised):
        fastddpm.optimize(depth)


def test_seeds(pipeline):
    fast = fastddpm.optimize(pipeline, noise="philox")
    alone = {name: value[1:] for name, value in embeds().items()}
    both = fast(seeds=[3, 2**40], eta=1.0, **embeds(), **CALL).images
    one = fast(seeds=[2**40], eta=1.0, **alone, **CALL).images
    assert (both[1] - one[0]).abs().max() <= 1e-3 * both.abs().max()
    assert (both[0] - both[1]).abs().max() > 0.1
    with pytest.raises(ValueError, match="seeds: 3 for 2 images given"):
        fast(seeds=[1, 2, 3], **embeds(), **CALL)


def test_trajectory(pipeline, fast):
    call = {**embeds(), "num_inference_steps": 4}
    states = fast.sample_trajectory(generator=torch.Generator().manual_seed(1), **call)
    assert states.shape == (5, 2, 4, 8, 8)
    assert states[0].equal(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)))
    latents = drawn(fast, **{**CALL, **call})[0]
    assert states[-1].equal(latents)
    predicted = fast.sample_trajectory(
        generator=torch.Generator().manual_seed(1), frames=2, predicted=True, **call
    )
    assert predicted.shape == (2, 2, 4, 8, 8)
    with pytest.raises(ValueError, match="frames"):
        fast.sample_trajectory(frames=9, **call)


@pytest.mark.parametrize("strength", [0.3, 0.75, 1.0])
@pytest.mark.parametrize(
    "scheduler", [ddim, solver, lambda: DDPMScheduler(clip_sample=False, steps_offset=1)]
)
def test_image_to_image(scheduler, strength):
    """From latents: those of a picture are in channels_last there, where convolutions may sum otherwise."""
    pipeline = text_pipeline(StableDiffusionImg2ImgPipeline, scheduler=scheduler())
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    call = {**embeds(), **CALL, "num_inference_steps": 8, "strength": strength}
    hold(pipeline, image=image, **call)


def test_image_to_image_calls(from_image, monkeypatch):
    fast = fastddpm.optimize(from_image)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    pictures = from_image.image_processor.numpy_to_pil(image.permute(0, 2, 3, 1).numpy())
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    one = {name: value[:1] for name, value in embeds().items()}
    each = {"generator": lambda: [torch.Generator().manual_seed(k) for k in (4, 9)], "eta": 0.5}
    hold(from_image, fast, image=pictures, output_type="np", num_inference_steps=5, **one)
    hold(from_image, fast, image=latents, **embeds(), **CALL)
    hold(from_image, fast, image=image, num_images_per_prompt=2, **each, **one, **CALL)
    seen = both_ways(from_image, fast, lambda pipe, step, held: held, image=latents, **embeds(), **CALL)
    assert [step for step, *_ in seen] == [0, 1, 2]
    states = fast.sample_trajectory(image=latents, strength=0.5, num_inference_steps=4, **embeds())
    assert states.shape == (3, 2, 4, 8, 8)
    for strength in (0.0, 0.1):
        with pytest.raises(
            ValueError, match=f"strength: {strength} of 4 steps, which is none, given, 0.25 or"
        ):
            fast(image=image, strength=strength, **one, **CALL)
    with pytest.raises(ValueError, match="strength"):
        fast(image=image, strength=1.5, **one, **CALL)


def test_captured(pipeline, monkeypatch):
    """Steps recorded once and replayed: other texts, scales and steps are other values in the buffers."""
    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    fast = fastddpm.optimize(pipeline)
    hold(pipeline, fast, **embeds(), **CALL)
    captures = RecordingBackend.captures
    assert captures > 0
    hold(pipeline, fast, guidance_scale=2.0, **embeds(seed=7), **CALL)
    assert RecordingBackend.captures == captures
    for scale in (2.0, 5.0):
        hold(pipeline, fast, guidance_scale=scale, guidance_rescale=scale / 10, **embeds(seed=7), **CALL)
    assert RecordingBackend.captures == 2 * captures


def test_onnx_runtime(pipeline):
    pytest.importorskip("onnxruntime")
    fast = fastddpm.optimize(pipeline, engine="onnxruntime")
    hold(pipeline, fast, **embeds(), **CALL)
    assert fast.report().engine == "onnxruntime"


def test_as_on_a_gpu(monkeypatch):
    """In channels_last, its norms fused, where the device is taken for one of CUDA."""
    from fastddpm.dropin import network as choice
    from fastddpm.dropin._diffusers import pipeline as module

    pipeline = text_pipeline()
    copied = copied_for(pipeline.unet, torch.device("cuda"), None, may_arrange=True)
    assert len(copied.fused.replaced) > 10
    fast = fastddpm.optimize(pipeline)
    seen = module.model_device_dtype
    for place in (module, choice):
        monkeypatch.setattr(place, "model_device_dtype", lambda unet: (torch.device("cuda"), seen(unet)[1]))
    monkeypatch.setattr(module, "resolve_engine", lambda engine, device: "eager")
    assert "UNet2DConditionModel, the original module, in channels_last, its norms fused" in str(
        fast.report()
    )
    hold(pipeline, fast, **embeds(), **CALL)
    with torch.no_grad():
        pipeline.unet.conv_in.weight.mul_(2)
    hold(pipeline, fast, **embeds(), **CALL)


def test_half_precision():
    pipeline = text_pipeline()
    fast = fastddpm.optimize(pipeline, dtype=torch.bfloat16)
    exact, coarse = (drawn(each, **embeds(), **CALL)[0] for each in (pipeline, fast))
    assert coarse.dtype == torch.float32
    assert 1e-4 < (coarse - exact).abs().max() / exact.abs().max() < 0.1
    pipeline.to(torch.bfloat16)
    got = fastddpm.optimize(pipeline)(**embeds(), **CALL, generator=torch.Generator().manual_seed(1)).images
    assert got.dtype == torch.bfloat16


def test_recognised_by_what_it_holds(tmp_path):
    Renamed = type("Mine", (StableDiffusionPipeline,), {"__module__": "my_project"})
    pipeline = text_pipeline(Renamed)
    fast = fastddpm.optimize(pipeline)
    hold(pipeline, fast, **embeds(), **CALL)
    text = str(fast.report())
    for part in (
        "StableDiffusionPipeline with DDIMScheduler",
        "UNet2DConditionModel",
        "guidance",
        "autoencoder",
    ):
        assert part in text
    assert fast.to("cpu") is fast
    assert fast.components.keys() == pipeline.components.keys()
    pipeline.scheduler = solver()
    hold(pipeline, fast, **embeds(), **CALL)
    pipeline.unet = text_unet(attention_head_dim=4)
    hold(pipeline, fast, **embeds(), **CALL)

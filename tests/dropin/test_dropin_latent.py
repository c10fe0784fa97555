"""Drop-ins for diffusers' LDM, DiT and PNDM pipelines against these themselves; states of the sigma space."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastddpm
from fastddpm.dropin._diffusers import options, states
from fastddpm.randomness import TorchNoise

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import (  # noqa: E402
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LDMPipeline,
    LDMSuperResolutionPipeline,
    PNDMPipeline,
    RePaintPipeline,
    RePaintScheduler,
    StableDiffusionImg2ImgPipeline,
)
from latent_pipelines import (  # noqa: E402
    BETAS,
    TOLERANCE,
    autoencoder,
    drawn,
    embeds,
    forbid_steps,
    hold,
    pixel_unet,
    quantizer,
    quiet,
    remembered,
    text_pipeline,
)

SCHEDULERS = (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler)
LABELS = [1, 207]


def ldm(scheduler=None):
    return quiet(LDMPipeline(quantizer(), pixel_unet(), scheduler or DDIMScheduler()))


def larger(scheduler=None):
    return quiet(LDMSuperResolutionPipeline(quantizer(), pixel_unet(6, 3), scheduler or DDIMScheduler()))


def transformer(classes=1000, out_channels=8):
    torch.manual_seed(2)
    network = DiTTransformer2DModel(
        sample_size=8,
        num_layers=2,
        patch_size=4,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=out_channels,
        num_embeds_ada_norm=classes,
    ).eval()
    with torch.no_grad():  # or the classes would hardly matter
        for block in network.transformer_blocks:
            block.norm1.emb.class_embedder.embedding_table.weight.mul_(30)
    return network


def dit(scheduler=None, **options):
    return quiet(DiTPipeline(transformer(**options), autoencoder(), scheduler or DDIMScheduler()))


def pndm(scheduler=None):
    pipeline = PNDMPipeline(pixel_unet(), diffusers.PNDMScheduler())  # which it makes of any
    pipeline.scheduler = scheduler or DDIMScheduler()
    return quiet(pipeline)


PICTURE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(8))
MADE = {
    ldm: {"batch_size": 2, "output_type": "np"},
    larger: {"image": PICTURE, "output_type": "pt"},
    dit: {"class_labels": LABELS, "output_type": "pt"},
    pndm: {"batch_size": 2, "output_type": "np"},
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("make", MADE)
def test_the_same_images(make, scheduler):
    """Also the same draws: a generator is given to the first alone, DiT's steps draw for both halves."""
    eta = {"eta": 0.6} if make in (ldm, larger) else {}
    hold(make(scheduler()), num_inference_steps=8, **eta, **MADE[make])


@pytest.mark.parametrize("options", [{}, {"prediction_type": "v_prediction", "steps_offset": 1}])
def test_pndm_with_its_own_scheduler(options):
    """Begun by Runge-Kutta steps, as it is by default: 12 + 5 evaluations for 8 steps."""
    hold(pndm(diffusers.PNDMScheduler(**options)), num_inference_steps=8, **MADE[pndm])


@pytest.mark.parametrize("make", MADE)
def test_it_is_our_loop(make, monkeypatch):
    pipeline = make()
    fast = fastddpm.optimize(pipeline)
    forbid_steps(monkeypatch, pipeline.scheduler)
    before = remembered(pipeline)
    seen = []
    call = {"num_inference_steps": 4, **MADE[make]}
    images, _ = drawn(fast, callback=lambda k, t, x: seen.append((k, t, x.clone())), **call)
    assert remembered(pipeline) == before
    assert [(k, t) for k, t, _ in seen] == [(0, 750), (1, 500), (2, 250), (3, 0)]
    torch.manual_seed(5)
    states = fast.sample_trajectory(generator=torch.Generator().manual_seed(1), **call)
    assert len(states) == 5
    assert all(states[k + 1].equal(x) for k, _, x in seen)
    if make is pndm:
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2)
        assert pixels.equal((states[-1] / 2 + 0.5).clamp(0, 1))
    text = str(fast.report())
    for part in (f"{type(pipeline).__name__} with DDIMScheduler", "clip", "ddim update"):
        assert part in text


@pytest.mark.parametrize("make", MADE)
def test_results_are_the_originals(make):
    pipeline = make()
    fast = fastddpm.optimize(pipeline)
    for output_type in ("pil", "np", "pt", None):
        # Pictures of PIL have 256 levels.
        hold(
            pipeline,
            fast,
            tolerance=1 if output_type == "pil" else TOLERANCE,
            num_inference_steps=2,
            **{**MADE[make], "output_type": output_type},
        )
    result = fast(num_inference_steps=1, **MADE[make])
    assert type(result) is diffusers.ImagePipelineOutput
    (images,) = fast(num_inference_steps=1, return_dict=False, **MADE[make])
    assert images.shape == result.images.shape
    with pytest.raises(TypeError, match="steps"):
        fast(steps=3, **MADE[make])
    with pytest.raises(ValueError, match="num_inference_steps"):
        fast(num_inference_steps=0, **MADE[make])


@pytest.mark.parametrize("make", MADE)
def test_seeds(make):
    fast = fastddpm.optimize(make(DDPMScheduler()), noise="philox")
    call = {"num_inference_steps": 3, **MADE[make], "output_type": "np"}
    call.pop("batch_size", None)
    both = fast(seeds=[3, 2**40], **call).images
    assert both.shape[0] == 2
    half = {"image": PICTURE[1:]} if make is larger else {"class_labels": LABELS[1:]} if make is dit else {}
    alone = fast(seeds=[2**40], **{**call, **half}).images
    assert np.abs(both[1] - alone[0]).max() <= 1e-3
    assert np.abs(both[0] - both[1]).max() > 1e-2


def test_generators():
    each = {"generator": lambda: [torch.Generator().manual_seed(k) for k in (4, 9)]}
    for make in (ldm, dit, larger):
        hold(make(DDPMScheduler()), num_inference_steps=3, **each, **MADE[make])
    with pytest.raises(ValueError, match="generator: 2 for 3 images"):
        fastddpm.optimize(ldm())(3, generator=each["generator"](), num_inference_steps=3)


def test_learned_variances():
    scheduler = DDPMScheduler(variance_type="learned_range")
    pipeline = quiet(LDMPipeline(quantizer(), pixel_unet(3, 6), scheduler))
    hold(pipeline, num_inference_steps=4, **MADE[ldm])
    with pytest.raises(ValueError, match="variance_type: a learned one given, fixed_small or fixed_large"):
        fastddpm.optimize(larger(scheduler))


def test_by_position():
    hold_pairs = [
        (ldm(), (2, None, 0.5, 3, "np", False)),
        (dit(), (LABELS, 2.0, None, 3, "np", False)),
        (larger(), (PICTURE, 1, 3, 0.5, None, "np", False)),
        (pndm(), (2, 3, None, "np", False)),
    ]
    for pipeline, arguments in hold_pairs:
        torch.manual_seed(0)
        (expected,) = pipeline(*arguments)
        torch.manual_seed(0)
        (got,) = fastddpm.optimize(pipeline)(*arguments)
        assert np.abs(got - expected).max() <= TOLERANCE


def test_a_picture_to_enlarge():
    pixels = np.random.default_rng(0).integers(0, 256, (33, 40, 3), np.uint8)
    hold(larger(), image=Image.fromarray(pixels), num_inference_steps=2, output_type="np")
    for wrong in ("cat.png", [PICTURE]):
        with pytest.raises(ValueError, match=f"image: {type(wrong).__name__} given, a tensor"):
            fastddpm.optimize(larger())(wrong)


@pytest.mark.parametrize("guidance_scale", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("out_channels", [4, 8])
def test_guidance_of_a_transformer(guidance_scale, out_channels):
    pipeline = dit(out_channels=out_channels)
    call = {"num_inference_steps": 6, "guidance_scale": guidance_scale, "output_type": "pt"}
    first = hold(pipeline, class_labels=LABELS, **call)
    other = hold(pipeline, class_labels=[1, 3], **call)
    assert (first[0] - other[0]).abs().max() <= 1e-3
    assert (first[1] - other[1]).abs().max() > 1e-2


def test_refused_of_a_transformer():
    fast = fastddpm.optimize(dit(classes=10))
    with pytest.raises(ValueError, match="guidance_scale: a number above 1 for 10 classes"):
        fast([1])
    fast([1], guidance_scale=1.0, num_inference_steps=1)
    for labels in ([11], [-1], [0.5], [], 3):
        with pytest.raises(ValueError, match=r"class_labels: .* given, a list of integers in 0 .. 10"):
            fast(labels, guidance_scale=1.0)
    with pytest.raises(ValueError, match="variance_type: a learned one"):
        fastddpm.optimize(dit(DDPMScheduler(variance_type="learned_range")))


def repainted(**config):
    return quiet(RePaintPipeline(pixel_unet(), RePaintScheduler(**config)))


KNOWN = {
    "image": PICTURE.clamp(-1, 1),
    "mask_image": (PICTURE[:1, :1] > 0).float(),
    "jump_length": 3,
    "jump_n_sample": 2,
    "num_inference_steps": 6,
    "output_type": "np",
}


@pytest.mark.filterwarnings("ignore:The preprocess method is deprecated")
@pytest.mark.parametrize(
    "call",
    [
        {},
        {"eta": 1.0},
        {"eta": 0.5, "jump_length": 2, "jump_n_sample": 3, "num_inference_steps": 7},
        {"generator": lambda: [torch.Generator().manual_seed(k) for k in (4, 9)], "eta": 0.3},
        {"num_inference_steps": 50, "output_type": "pil"},
    ],
    ids=["DDIM", "DDPM", "jumps", "generators", "all steps"],
)
def test_repaint(call, monkeypatch):
    pipeline = repainted(num_train_timesteps=8 if "output_type" in call else 40)
    fast = fastddpm.optimize(pipeline)
    hold(pipeline, fast, tolerance=1 if "output_type" in call else TOLERANCE, **{**KNOWN, **call})
    if call != {}:
        return
    before = remembered(pipeline)
    forbid_steps(monkeypatch, pipeline.scheduler)
    seen = []
    images, _ = drawn(fast, callback=lambda k, t, x: seen.append((k, t)), **KNOWN)
    assert remembered(pipeline) == before
    assert seen == list(enumerate([t * 6 for t in (5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0)]))
    known = np.broadcast_to(KNOWN["mask_image"].permute(0, 2, 3, 1).numpy(), images.shape) > 0
    given = (KNOWN["image"].permute(0, 2, 3, 1).numpy() / 2 + 0.5)[known]
    assert np.abs(images[known] - given).max() <= 1e-6


@pytest.mark.filterwarnings("ignore:The preprocess method is deprecated")
def test_repaint_of_pictures():
    pipeline = repainted()
    random = np.random.default_rng(0)
    pictures = [Image.fromarray(random.integers(0, 256, (32, 33, 3), np.uint8)) for _ in range(2)]
    known = Image.fromarray(random.integers(0, 256, (35, 32, 3), np.uint8))
    call = {**KNOWN, "num_inference_steps": 2, "jump_length": 1, "jump_n_sample": 1}
    hold(pipeline, **{**call, "image": pictures[0], "mask_image": known})
    hold(pipeline, **{**call, "image": pictures, "mask_image": [known]})
    lists = {name: list(KNOWN[name].split(1)) for name in ("image", "mask_image")}
    hold(pipeline, **{**call, **lists})
    fast = fastddpm.optimize(pipeline)
    for wrong, words in (
        ({"image": "cat.png"}, "image: str given"),
        ({"mask_image": [3]}, "mask_image: int given"),
        # diffusers takes them for channels.
        ({"mask_image": [known, known]}, "mask_image: 2 pictures given, one picture, or a tensor"),
        ({"image": [pictures[0], pictures[0].resize((40, 40))]}, "image: pictures of several sizes"),
        ({"image": PICTURE[0]}, r"image: shape \(3, 8, 8\) given"),
        ({"jump_length": 0}, "jump_length"),
        ({"generator": [torch.Generator()] * 3}, "generator: 3 for 2 images"),
        ({"seeds": [1, 2]}, "seeds"),
    ):
        with pytest.raises(ValueError, match=words):
            fast(**{**KNOWN, **wrong})
    with pytest.raises(ValueError, match="sample_trajectory: a RePaintPipeline given"):
        fast.sample_trajectory(**KNOWN)
    with pytest.raises(ValueError, match="noise: 'philox' for a RePaintPipeline given"):
        fastddpm.optimize(pipeline, noise="philox")
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="scheduler: DDIMScheduler given, a RePaintScheduler"):
        fastddpm.optimize(pipeline)


def test_draws_for_more_than_there_are():
    expected = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))[:2]
    source = TorchNoise(torch.Generator().manual_seed(0), torch.device("cpu"), rows=4)
    assert source.draw((2, 1, 2, 2)).equal(expected)


@pytest.fixture
def euler():
    """A scheduler whose state is x / sqrt(abar)."""
    return EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing")


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_the_scale_of_states(euler, last):
    euler = EulerDiscreteScheduler(**{**euler.config, "final_sigmas_type": last})
    plan = options.plan_of(euler, options.Steps(5), options.Options())
    euler.set_timesteps(5)
    scale = states.state_scale(euler, plan)
    assert np.allclose(scale, np.sqrt(1 + euler.sigmas.double().numpy() ** 2), rtol=1e-5)
    assert (scale[-1] == 1) == (last == "zero")
    ddim = DDIMScheduler()
    assert (states.state_scale(ddim, options.plan_of(ddim, options.Steps(5), options.Options())) == 1).all()


@pytest.mark.parametrize("cls", [None, StableDiffusionImg2ImgPipeline])
def test_texts_in_the_sigma_space(euler, cls):
    given = {"image": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))} if cls else {}
    pipeline = text_pipeline(*([cls] if cls else []), scheduler=euler)
    fast = fastddpm.optimize(pipeline)
    call = {"num_inference_steps": 5, "output_type": "latent", **embeds(), **given}
    hold(pipeline, fast, **call)
    seen = {}
    for each in (pipeline, fast):
        seen[each] = []

        def halve(pipe, step, timestep, held, kept=seen[each]):
            kept.append(held["latents"])
            return {"latents": 0.5 * held["latents"]}

        drawn(each, callback_on_step_end=halve, **call)
    for ours, theirs in zip(seen[fast], seen[pipeline], strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()
    trajectory = fast.sample_trajectory(
        generator=torch.Generator().manual_seed(1), num_inference_steps=5, **embeds(), **given
    )
    # The deviation that the scheduler begins with: sigma where noise alone is, more with an image.
    assert trajectory[0].std() > 2


def test_ldm_in_the_sigma_space(euler):
    hold(ldm(euler), num_inference_steps=6, **MADE[ldm])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (larger, "which scales the low resolution"),
        (dit, "whose scaled state the original takes for the state"),
        (pndm, "whose state the original gives to its network as it is"),
        (lambda scheduler: diffusers.DDPMPipeline(pixel_unet(), scheduler), "whose state the original gives"),
    ],
)
def test_pipelines_that_do_not_scale_the_state_alone_are_refused(euler, make, words):
    with pytest.raises(ValueError, match=f"scheduler: EulerDiscreteScheduler, {words}"):
        fastddpm.optimize(make(euler))

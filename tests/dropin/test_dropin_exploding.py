"""Drop-ins for diffusers' KarrasVe and ScoreSdeVe pipelines against these themselves."""

import math

import numpy as np
import pytest
import torch
from replay import RecordingBackend

import fastddpm
from fastddpm.dropin._diffusers.exploding import InTurn
from fastddpm.engine import executors
from fastddpm.engine.langevin import langevin
from fastddpm.plans.diffusers.exploding import from_karras_ve_scheduler, from_score_sde_ve_scheduler
from fastddpm.randomness import TorchNoise

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from diffusers import (  # noqa: E402
    DDIMScheduler,
    KarrasVePipeline,
    KarrasVeScheduler,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
)
from latent_pipelines import TOLERANCE, drawn, hold, pixel_unet, quiet, remembered, tensor  # noqa: E402

CALL = {"batch_size": 2, "num_inference_steps": 6, "output_type": "np"}
# Of sigmas that leave most pixels of an untrained network between black and white.
KARRAS = {"sigma_max": 2.0, "s_churn": 3.0, "s_min": 0.01, "s_max": 1.0}
SCORE = {"sigma_max": 1.5, "snr": 0.05}


def karras(unet=None, **config):
    return quiet(KarrasVePipeline(unet or pixel_unet(), KarrasVeScheduler(**{**KARRAS, **config})))


def score(unet=None, **config):
    return quiet(ScoreSdeVePipeline(unet or pixel_unet(), ScoreSdeVeScheduler(**{**SCORE, **config})))


MADE = [karras, score]


def nobody():
    return None


def one_each():
    return [torch.Generator().manual_seed(seed) for seed in (7, 8)]


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("generator", [1, nobody, one_each])
@pytest.mark.parametrize("steps", [2, 3, 15])
def test_the_same_images(make, generator, steps):
    """Of a generator, one each, or torch's own state, which is left as the original leaves it.

    Of few steps KarrasVe's corrections divide rounding errors by a small sigma, and have to repeat them.
    """
    got = hold(make(), generator=generator, **{**CALL, "num_inference_steps": steps})
    assert ((got > 0) & (got < 1)).mean() > 0.1


@pytest.mark.parametrize(
    "config",
    [
        {"s_churn": 0.0},
        {"s_churn": 80.0, "s_noise": 1.2},  # gamma at its largest
        {"s_min": 0.0, "s_max": 10.0},  # noise before the first step too
        {"sigma_min": 0.2, "sigma_max": 1.1, "s_min": 0.0, "s_max": 10.0},
    ],
)
def test_configurations_of_karras_ve(config):
    hold(karras(**config), **CALL)


@pytest.mark.parametrize(
    "config",
    [{"correct_steps": 0}, {"correct_steps": 3, "snr": 0.01}, {"sigma_min": 0.1, "sampling_eps": 0.2}],
)
def test_configurations_of_score_sde_ve(config):
    hold(score(**config), **CALL)


@pytest.mark.parametrize("make", [KarrasVeScheduler, ScoreSdeVeScheduler])
def test_the_default_sigmas(make):
    """Those of diffusers' own tests, by which every pixel of an untrained network is black or white."""
    pipeline = KarrasVePipeline if make is KarrasVeScheduler else ScoreSdeVePipeline
    hold(quiet(pipeline(pixel_unet(), make())), **{**CALL, "num_inference_steps": 5})


def test_a_single_step():
    hold(score(), **{**CALL, "num_inference_steps": 1})
    for steps in (1, 0, 2.5):
        with pytest.raises(ValueError, match=f"num_inference_steps: {steps} given, "):
            fastddpm.optimize(karras())(**{**CALL, "num_inference_steps": steps})


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", None])
def test_results_are_the_originals(make, output_type):
    tolerance = 1 if output_type == "pil" else TOLERANCE  # of 256 levels
    pipeline = make()
    hold(pipeline, tolerance=tolerance, **{**CALL, "output_type": output_type})
    (images,) = fastddpm.optimize(pipeline)(**CALL, return_dict=False)
    assert images.shape == (2, 8, 8, 3)
    (one,) = fastddpm.optimize(pipeline)(output_type="np", num_inference_steps=2, return_dict=False)
    assert len(one) == 1


@pytest.mark.parametrize("make", MADE)
def test_it_is_our_loop(make, monkeypatch):
    """No method of the scheduler that makes a step is called, and the pipeline stays as it was."""
    pipeline = make()
    fast = fastddpm.optimize(pipeline)
    before = remembered(pipeline)
    expected, _ = drawn(pipeline, **CALL)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    before = remembered(pipeline)

    def forbidden(*args, **kwargs):
        raise AssertionError("the scheduler was called")

    for name in ("step", "step_correct", "step_pred", "add_noise_to_input"):
        monkeypatch.setattr(type(pipeline.scheduler), name, forbidden, raising=False)
    got, _ = drawn(fast, **CALL)
    monkeypatch.undo()
    assert np.abs(got - expected).max() <= TOLERANCE
    assert remembered(pipeline) == before
    text = str(fast.report())
    for part in (f"{type(pipeline).__name__} with {type(pipeline.scheduler).__name__}", "_ve update"):
        assert part in text


@pytest.mark.parametrize("make", MADE)
def test_states_on_the_way(make):
    fast = fastddpm.optimize(make())
    rows = 11 if make is karras else 12
    seen = []
    images, _ = drawn(fast, callback=lambda k, t, x: seen.append((k, t, x.clone())), **CALL)
    assert [k for k, _, _ in seen] == list(range(rows))
    # What the network is told: half of sigma_max squared, or sigma_max.
    assert seen[0][1] == (2.0 if make is karras else 1.5)
    torch.manual_seed(5)
    states = fast.sample_trajectory(generator=torch.Generator().manual_seed(1), **CALL)
    assert len(states) == rows + 1
    assert all(states[k + 1].equal(x) for k, _, x in seen)
    pixels = states[-1] / 2 + 0.5 if make is karras else states[-1]
    assert tensor(images).permute(0, 3, 1, 2).equal(pixels.clamp(0, 1).double())


def test_predictions_on_the_way():
    """KarrasVe's last row ends at the image that it predicts; a row of a corrector predicts none."""
    fast = fastddpm.optimize(karras())
    given = {**CALL, "generator": torch.Generator().manual_seed(1)}
    predicted = fast.sample_trajectory(predicted=True, **given)
    given = {**CALL, "generator": torch.Generator().manual_seed(1)}
    assert (predicted[-1] - fast.sample_trajectory(**given)[-1]).abs().max() < 1e-6
    with pytest.raises(ValueError, match="predicted: True for a ScoreSdeVePipeline given, False accepted"):
        fastddpm.optimize(score()).sample_trajectory(predicted=True, **CALL)


def test_seeds():
    """Of KarrasVe an image depends on its own seed alone; ScoreSdeVe's corrector looks at the whole batch."""
    fast = fastddpm.optimize(karras(s_min=0.0, s_max=10.0), noise="philox")
    call = {"num_inference_steps": 6, "output_type": "np"}
    both = fast(seeds=[3, 4], **call).images
    assert np.abs(fast(seeds=[4], **call).images[0] - both[1]).max() < 1e-4
    assert np.abs(both[0] - both[1]).max() > 0.1
    states = fast.sample_trajectory(seeds=range(4000), num_inference_steps=2)
    # sigma_max and the churn of a first step from sigma_max squared.
    raised = 4 * math.sqrt(2)
    expected = math.sqrt(2.0**2 + 1.007**2 * (raised**2 - 4**2))
    assert abs(states[0].std().item() / expected - 1) < 0.005
    for make in MADE:
        with pytest.raises(ValueError, match="seeds: seeds with noise="):
            fastddpm.optimize(make())(seeds=[1, 2], **CALL)
    with pytest.raises(ValueError, match="noise: 'philox' for a ScoreSdeVePipeline given"):
        fastddpm.optimize(score(), noise="philox")


@pytest.mark.parametrize("make", MADE)
def test_captured(make, monkeypatch):
    """Replayed for other noise, and for other weights in their place."""
    pipeline = make()
    monkeypatch.setattr("fastddpm.runner.resolve_engine", lambda engine, device: "cudagraph")
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    monkeypatch.setattr(RecordingBackend, "captures", 0)
    fast = fastddpm.optimize(pipeline)
    hold(pipeline, fast, **CALL)
    hold(pipeline, fast, generator=2, **CALL)
    captures = RecordingBackend.captures
    assert captures > 0
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(0.8)
    hold(pipeline, fast, generator=3, **CALL)
    assert RecordingBackend.captures == captures


@pytest.mark.parametrize("make", MADE)
def test_half_precision_of_the_network_alone(make):
    """The state and what is made of the output stay in float32."""
    pipeline, call = make(), {**CALL, "num_inference_steps": 3}
    expected, _ = drawn(pipeline, **call)
    got, _ = drawn(fastddpm.optimize(pipeline, dtype=torch.bfloat16), **call)
    assert np.abs(got - expected).mean() < 0.01


@pytest.mark.parametrize("make", MADE)
def test_what_is_refused(make):
    pipeline = make()
    fast = fastddpm.optimize(pipeline)
    for wrong, words in (
        ({"generator": [torch.Generator()] * 3, "batch_size": 4}, "generator: 3 for 4 images"),
        ({"batch_size": 0}, "batch_size: 0 given"),
    ):
        with pytest.raises(ValueError, match=words):
            fast(**{**CALL, **wrong})
    with pytest.raises(TypeError, match="eta: given, beyond the original's"):
        fast(**CALL, eta=0.5)
    wanted = "a KarrasVeScheduler" if make is karras else "a ScoreSdeVeScheduler"
    pipeline.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match=f"scheduler: DDIMScheduler given, {wanted}"):
        fast(**CALL)
    kind = type(make().scheduler)
    own = type("Mine", (kind,), {"step_correct": lambda self, *args: None})
    pipeline.scheduler = own()
    with pytest.raises(ValueError, match="scheduler: Mine, whose step_correct takes the place of"):
        fastddpm.optimize(pipeline)
    with pytest.raises(ValueError, match=r"sigma_min, sigma_max: 0\.0 and "):
        fastddpm.optimize(make(sigma_min=0.0) if make is karras else karras(sigma_min=0.0))
    with pytest.raises(ValueError, match="unet: a network that returns 6 channels for images of 3 given"):
        fastddpm.optimize(make(pixel_unet(3, 6)))


def test_a_class_of_another_name_is_recognised():
    """As where a project has copied the pipeline."""
    pipeline = karras()
    pipeline.__class__ = type("Copied", (KarrasVePipeline,), {})
    assert isinstance(fastddpm.optimize(pipeline), fastddpm.dropin.diffusers_pipelines.FastKarrasVePipeline)


def test_plans_are_the_papers():
    """Rows against the formulas, in float64: KarrasVe's churn, and g of ScoreSdeVe."""
    plan = from_karras_ve_scheduler(KarrasVeScheduler(**KARRAS), 4)
    sigmas = [4 * (0.02**2 / 4) ** (i / 3) for i in range(4)]
    gamma = [min(3 / 4, math.sqrt(2) - 1) if 0.01 <= sigma <= 1.0 else 0.0 for sigma in sigmas]
    assert sorted({value > 0 for value in gamma}) == [False, True]
    raised = [sigma * (1 + more) for sigma, more in zip(sigmas, gamma, strict=True)]
    told = [value / 2 for pair in zip(raised, [*sigmas[1:], 0.0], strict=True) for value in pair]
    assert np.allclose(plan.model_time, told[:-1], rtol=1e-5)
    added = [1.007 * math.sqrt(high**2 - low**2) for high, low in zip(raised, sigmas, strict=True)]
    assert np.allclose(plan.table[1::2, 7], added[1:], rtol=1e-4)
    assert plan.draws.tolist() == [False, True] * 3 + [False]
    # By which a kernel rounds products before it adds them: what a small sigma divides is rounding.
    assert plan.divides

    plan = from_score_sde_ve_scheduler(ScoreSdeVeScheduler(**SCORE), 5)
    ladder = np.append(0.0, np.geomspace(0.01, 1.5, 5))
    # Times fall from 1 to sampling_eps, and their products with 4 are rounded down.
    places = np.array([4, 3, 2, 1, 0])
    assert plan.timesteps.tolist() == np.repeat(places, 2).tolist()
    g = np.sqrt(ladder[places + 1] ** 2 - ladder[places] ** 2)
    assert np.allclose(plan.table[1::2, 5], g**2, rtol=1e-4)
    assert np.allclose(plan.table[1::2, 7], [*g[:-1], 0.0], rtol=1e-4)
    assert plan.draws.all()


def test_a_langevin_row():
    """Against numbers worked out: |z| = 5 and 13, |m| = 2 and 4, so that eps = 2 (0.1 9/3)^2 = 0.18."""
    m = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    ring = torch.stack((torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [5.0, 12.0]]), torch.ones(2, 2)))
    scaled, noise = langevin(m, ring, torch.tensor([4, 4]), 0.1, 2)
    assert torch.allclose(scaled, 0.18 * m)
    assert torch.allclose(noise, 0.6 * ring[1:2])
    # By engine="compile" in the step's one graph.
    traced = torch.compile(langevin, fullgraph=True, backend="eager")(m, ring, torch.tensor([4, 4]), 0.1, 2)
    assert torch.equal(traced[0], scaled)
    assert torch.equal(traced[1], noise)
    scaled, noise = langevin(m, ring, torch.tensor([5, 5]), 0.1, 2)
    assert scaled.equal(m)
    assert noise.equal(ring[2:])


def test_noise_of_two_sources_in_turn():
    """On a card without a generator the corrector's is the host's, the predictor's the card's."""
    plan = from_score_sde_ve_scheduler(ScoreSdeVeScheduler(**SCORE, correct_steps=2), 2)
    device = torch.device("cpu")
    host, card = (TorchNoise(torch.Generator().manual_seed(seed), device) for seed in (1, 2))
    ring = torch.zeros(6, 3)
    InTurn(host, card, 2).fill(ring, plan, 0, 4)
    InTurn(host, card, 2).fill(ring, plan, 4, 6)
    of_host, of_card = (torch.Generator().manual_seed(seed) for seed in (1, 2))
    sources = [of_host, of_host, of_card] * 2
    assert ring.equal(torch.stack([torch.randn(3, generator=source) for source in sources]))

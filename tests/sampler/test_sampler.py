"""The sampler: what it returns, what a seed fixes, and what it refuses."""

from __future__ import annotations

import dataclasses
import functools
import math
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from networks import TINY, make_unet
from tolerances import ACROSS_BATCHES, SAME_OPS

from fastddpm import NoiseSchedule, Sampler, UNetConfig
from fastddpm.trajectory import evenly_spread
from fastddpm_kernels import normal

QUIET = {"progress": False}


def ideal_model(mean: float, spread: float, schedule: NoiseSchedule):
    """The exact noise prediction for data N(mean, spread**2), from the score of q(x_t)."""
    abar = torch.tensor(schedule.alphas_cumprod, dtype=torch.float32)

    def model(x, t):
        a = abar[t][:, None, None, None]
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * spread**2 + 1 - a)

    return model


@pytest.mark.parametrize(
    "options",
    [
        {"method": "ddpm"},
        {"method": "ddpm", "variance_type": "fixed_large"},
        {"method": "ddim"},
        {"method": "ddim", "eta": 1.0},
        {"method": "dpmpp_2m"},
    ],
    ids=lambda o: "-".join(str(v) for v in o.values()),
)
def test_samples_of_a_known_distribution(options):
    """With the exact prediction for N(0.5, 0.2**2), 40,000 numbers come out so distributed."""
    schedule = NoiseSchedule.linear(1000)
    sampler = Sampler(
        ideal_model(0.5, 0.2, schedule), schedule, timestep_spacing="trailing", shape=(1, 50, 50), **options
    )
    images = sampler.sample(seeds=range(16), **QUIET)
    # Standard error of both 0.001. A thousand steps of finite size lose at most 2 % of the spread (the
    # posterior variance is a lower bound of the right one; the plans' own tests hold it to a closed form).
    assert images.mean().item() == pytest.approx(0.5, abs=0.004)
    assert images.std().item() == pytest.approx(0.2, rel=0.025)


def test_a_loop_written_from_the_paper_gives_the_same_image(unet):
    """Algorithm 2 of Ho et al. 2020, in float64 on float32 predictions, with the noise spec's z."""
    schedule = NoiseSchedule.linear(20, 1e-3, 0.2)
    seeds, labels = [11, 2**63 - 1], torch.tensor([1, 2])
    x = normal(torch.tensor(seeds), 0, (3, 8, 8)).double()
    for k, t in enumerate(reversed(range(20))):
        beta, abar = schedule.betas[t], float(np.prod(1 - schedule.betas[: t + 1]))
        abar_prev = float(np.prod(1 - schedule.betas[:t]))
        with torch.no_grad():
            eps = unet(x.float(), torch.full((2,), t), labels).double()
        x = (x - beta / math.sqrt(1 - abar) * eps) / math.sqrt(1 - beta)
        if t > 0:
            sigma = math.sqrt(beta * (1 - abar_prev) / (1 - abar))
            x = x + sigma * normal(torch.tensor(seeds), k + 1, (3, 8, 8)).double()
    sampler = Sampler(unet, schedule, shape=(3, 8, 8))
    images = sampler.sample(seeds=seeds, class_labels=labels, **QUIET)
    assert (images - x).abs().max() <= 1e-5 * x.abs().max()


def test_an_image_depends_on_its_own_seed_only(sampler):
    alone = sampler.sample(seeds=[25], class_labels=3, **QUIET)
    ten = sampler.sample(seeds=range(20, 30), class_labels=3, **QUIET)
    cut = sampler.sample(seeds=range(20, 30), class_labels=3, max_batch=4, **QUIET)
    assert (ten[5] - alone[0]).abs().max() <= ACROSS_BATCHES
    assert (cut - ten).abs().max() <= ACROSS_BATCHES
    assert (ten[4] - ten[5]).abs().max() > 0.1


def test_deterministic_methods_start_from_the_same_noise(sampler):
    x_T = normal(torch.tensor([4]), 0, (3, 8, 8))
    ddim = sampler.replace(method="ddim")
    from_seed = ddim.sample(seeds=[4], class_labels=1, **QUIET)
    from_noise = ddim.sample(x_T=x_T, class_labels=1, **QUIET)
    assert (from_seed - from_noise).abs().max() <= SAME_OPS
    assert torch.equal(x_T, normal(torch.tensor([4]), 0, (3, 8, 8)))


def test_guidance_mixes_two_predictions(sampler, unet):
    def guided(x, t):
        null = unet(x, t, torch.full((len(x),), 4))
        return null + 2.5 * (unet(x, t, torch.full((len(x),), 2)) - null)

    options = {**sampler.options, "engine": "eager"}
    by_hand = Sampler(lambda x, t: guided(x, t), sampler.schedule, **options)
    expected = by_hand.sample(seeds=[1, 2], **QUIET)
    images = sampler.sample(seeds=[1, 2], class_labels=2, guidance_scale=2.5, **QUIET)
    assert (images - expected).abs().max() <= ACROSS_BATCHES
    unguided = sampler.sample(seeds=[1, 2], class_labels=2, **QUIET)
    assert (images - unguided).abs().max() > 0.01
    # No label means the null label.
    assert torch.equal(sampler.sample(seeds=[1], **QUIET), sampler.sample(seeds=[1], class_labels=4, **QUIET))


def test_condition_stands_in_front_of_x():
    seen = []

    def model(x, t):
        seen.append(x)
        return x[:, 2:]

    condition = torch.rand(1, 2, 4, 4)
    sampler = Sampler(model, NoiseSchedule.linear(), num_inference_steps=3, clip_sample_range=1.0)
    sampler.sample(seeds=[1, 2], shape=(3, 4, 4), condition=condition, **QUIET)
    assert all(x.shape == (2, 5, 4, 4) for x in seen)
    assert all(torch.equal(x[:, :2], condition.expand(2, -1, -1, -1)) for x in seen)


@pytest.mark.parametrize(
    "options",
    [{}, {"initial_pad": 2, "center_input": True}, {"num_classes": 4, "null_class": True}],
    ids=["plain", "padded", "guided"],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_our_network_sees_what_a_function_sees(options, layout):
    """The condition in front of x, whatever form of the network runs, with the weights as they are now."""
    unconditional = {"num_classes": None, "null_class": False}
    config = dataclasses.replace(TINY, **{"in_channels": 5, "out_channels": 3, **unconditional, **options})
    unet = make_unet(config).to(memory_format=layout)
    labels = torch.tensor([1, 2]) if config.num_classes else None

    def hidden(x, t):
        """A function gets condition and x in one tensor, and guides itself."""
        if labels is None:
            return unet(x, t)
        null = unet(x, t, torch.full_like(labels, 4))
        return null + 1.5 * (unet(x, t, labels) - null)

    # Predictions of x0: from those of noise, a first step at t = 999 would take 160 times the rounding.
    setting = {"num_inference_steps": 3, "prediction_type": "sample", "shape": (3, 8, 8)}
    sampler = Sampler(unet, NoiseSchedule.linear(), **setting)
    expected = Sampler(hidden, NoiseSchedule.linear(), **setting)
    guided = {} if labels is None else {"class_labels": labels, "guidance_scale": 1.5}
    request = {"seeds": [3, 4], "condition": torch.randn(2, 2, 8, 8), **QUIET}
    for _ in range(2):
        images = sampler.sample(**request, **guided)
        assert (images - expected.sample(**request)).abs().max() < 1e-5
        with torch.no_grad():
            unet.conv_in.weight.mul_(1.5)
            unet.conv_in.bias.add_(0.5)
        request["condition"] = -request["condition"]
        assert (sampler.sample(**request, **guided) - images).abs().max() > 1e-2


@pytest.mark.parametrize("wrap", [lambda m: SimpleNamespace(sample=m), lambda m: (m,), lambda m: [m]])
def test_outputs_of_other_libraries_are_unwrapped(wrap):
    schedule = NoiseSchedule.linear()
    options = {"num_inference_steps": 3, "shape": (1, 4, 4)}
    expected = Sampler(lambda x, t: 0.1 * x, schedule, **options).sample(seeds=[1], **QUIET)
    wrapped = Sampler(lambda x, t: wrap(0.1 * x), schedule, **options)
    assert torch.equal(wrapped.sample(seeds=[1], **QUIET), expected)
    with pytest.raises(ValueError, match="model: one that returned dict given"):
        Sampler(lambda x, t: {"m": x}, schedule, **options).sample(seeds=[1], **QUIET)


def test_dynamic_thresholding_bounds_what_the_chain_uses(unet, sampler):
    plan = Sampler(unet, sampler.schedule, num_inference_steps=10).plan.with_thresholding(0.9, 1e6)
    thresholded = Sampler.from_plan(unet, sampler.schedule, plan, shape=(3, 8, 8))
    frames = thresholded.sample_trajectory(seeds=[1], class_labels=0, predicted=True, **QUIET)
    assert frames.abs().max() <= 1.0
    # A tenth of the values lies at the bound.
    share = (frames[0].abs() > 0.999).float().mean().item()
    assert share == pytest.approx(0.1, abs=0.02)


def test_trajectory_ends_in_the_sample_and_thins_evenly(sampler):
    call = {"seeds": [3, 4, 5], "class_labels": 1, **QUIET}
    frames = sampler.sample_trajectory(**call)
    assert frames.shape == (11, 3, 3, 8, 8)
    assert torch.equal(frames[-1], sampler.sample(**call))
    assert torch.equal(frames[0], normal(torch.tensor([3, 4, 5]), 0, (3, 8, 8)))
    thin = sampler.sample_trajectory(frames=3, max_batch=2, **call)
    assert (thin - frames[[0, 5, 10]]).abs().max() <= ACROSS_BATCHES
    predicted = sampler.sample_trajectory(frames=4, predicted=True, **call)
    assert predicted.shape[0] == 4
    # The last step adds no noise: its state is the clean image it predicted.
    assert (predicted[-1] - frames[-1]).abs().max() <= 1e-6
    assert evenly_spread(11, 4) == [0, 3, 7, 10]


def test_variations_stay_closer_the_later_they_start(sampler):
    sampler = sampler.replace(num_inference_steps=100)
    image = torch.rand(1, 3, 8, 8) * 2 - 1
    near, far = (
        sampler.sample_from(image.expand(8, -1, -1, -1), t, seeds=range(8), class_labels=1, **QUIET)
        for t in (20, 900)
    )
    assert (near - image).abs().mean() < 0.5 * (far - image).abs().mean()


def test_variation_against_the_steps_by_hand(unet):
    """x_t = sqrt(abar) x_0 + sqrt(1-abar) z with z of stream 4, then the rest of the plan's rows."""
    schedule = NoiseSchedule.linear(10, 1e-3, 0.2)
    sampler = Sampler(unet, schedule, shape=(3, 8, 8), clip_sample_range=1.0)
    image, label = torch.rand(1, 3, 8, 8), torch.tensor([2])
    out = sampler.sample_from(image, 1, seeds=[9], class_labels=2, **QUIET)
    seed = torch.tensor([9])
    x = schedule.sqrt_alphas_cumprod[1] * image + schedule.sqrt_one_minus_alphas_cumprod[1] * normal(
        seed, 9, (3, 8, 8), stream=4
    )
    for t in (1, 0):
        abar = schedule.alphas_cumprod[t]
        with torch.no_grad():
            eps = unet(x.float(), torch.tensor([t]), label)
        x_0 = ((x - math.sqrt(1 - abar) * eps) / math.sqrt(abar)).clamp(-1, 1)
        mean = schedule.posterior_mean_coef1[t] * x_0 + schedule.posterior_mean_coef2[t] * x
        # Counters are kept: row 8 of the plan draws step word 9 of stream 0.
        x = mean + (math.sqrt(schedule.posterior_variance[1]) * normal(seed, 9, (3, 8, 8)) if t else 0)
    assert (out - x).abs().max() <= 1e-5


@pytest.mark.parametrize("method", ["dpmpp_2m", "unipc", "pndm", "heun"])
def test_multistep_chain_may_start_anywhere(sampler, method):
    """At the start of a step: the network is told of no timestep above, and first of the row's."""
    told = []

    def model(x, t, class_labels):
        told.append(int(t[0]))
        return sampler.model(x, t, class_labels=class_labels)

    options = {**sampler.options, "method": method, "null_label": 4}
    second_order = Sampler(model, sampler.schedule, **options)
    images = second_order.sample_from(torch.rand(2, 3, 8, 8), 500, seeds=[1, 2], class_labels=0, **QUIET)
    assert images.isfinite().all()
    row = second_order.plan.row_of(500)
    assert told == second_order.plan.timesteps[row:].tolist()
    assert row > 0
    assert second_order.plan.starts[row]


@pytest.mark.parametrize("method", ["unipc", "heun", "dpmpp_3m_sde"])
def test_solvers_draw_a_known_distribution_in_few_steps(method):
    """27 steps where DDPM above takes a thousand."""
    schedule = NoiseSchedule.linear(1000)
    timesteps = np.unique(np.geomspace(1, 1000, 30).round().astype(int))[::-1] - 1
    assert len(timesteps) == 27
    sampler = Sampler(
        ideal_model(0.5, 0.2, schedule),
        schedule,
        method=method,
        timesteps=timesteps,
        shape=(1, 50, 50),
    )
    images = sampler.sample(seeds=range(16), **QUIET)
    assert images.mean().item() == pytest.approx(0.5, abs=0.01)
    assert images.std().item() == pytest.approx(0.2, rel=0.06)


def test_interpolation_runs_from_one_variation_to_the_other(sampler):
    first, second = torch.rand(2, 3, 8, 8) * 2 - 1
    row = sampler.interpolate(first, second, 300, steps=5, seed=7, class_labels=1, **QUIET)
    ends = sampler.sample_from(torch.stack((first, second)), 300, seeds=[7, 7], class_labels=1, **QUIET)
    assert row.shape == (5, 3, 8, 8)
    assert (row[[0, 4]] - ends).abs().max() <= ACROSS_BATCHES
    gaps = (row[1:] - row[:-1]).flatten(1).norm(dim=1)
    assert gaps.max() < 0.75 * (row[4] - row[0]).norm()


def test_sampling_leaves_the_model_as_it_was():
    unet = make_unet(UNetConfig(**{**TINY.to_dict(), "dropout": 0.5})).train()
    unet.mid.eval()
    modes = [module.training for module in unet.modules()]
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    sampler = Sampler(unet, NoiseSchedule.linear(), num_inference_steps=3, shape=(3, 8, 8))
    first = sampler.sample(seeds=[1], class_labels=1, **QUIET)
    assert torch.equal(first, sampler.sample(seeds=[1], class_labels=1, **QUIET))
    assert [module.training for module in unet.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())


def test_results_are_not_overwritten_by_the_next_call(sampler):
    first = sampler.sample(seeds=[1], class_labels=1, **QUIET)
    kept = first.clone()
    sampler.sample(seeds=[2], class_labels=1, **QUIET)
    assert torch.equal(first, kept)


def test_fresh_seeds_follow_torchs_random_state(sampler):
    images = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        images.append(sampler.sample(2, class_labels=1, **QUIET))
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    generators = [torch.Generator().manual_seed(i) for i in (5, 6)]
    listed = sampler.sample(class_labels=1, noise="torch", generator=generators, **QUIET)
    alone = sampler.sample(
        class_labels=1, noise="torch", generator=[torch.Generator().manual_seed(6)], **QUIET
    )
    assert (listed[1] - alone[0]).abs().max() <= ACROSS_BATCHES


def test_low_precision_network_keeps_a_float32_state(unet, sampler):
    expected = sampler.sample(seeds=[1], class_labels=1, **QUIET)
    unet.to(torch.bfloat16)
    image = Sampler(unet, sampler.schedule, **sampler.options).sample(seeds=[1], class_labels=1, **QUIET)
    assert image.dtype == torch.float32
    assert 0 < (image - expected).abs().mean() < 0.1


def test_learned_range_needs_the_models_variance(unet, sampler):
    learned = sampler.replace(variance_type="learned_range")
    with pytest.raises(ValueError, match="variance_type: learned_range with a model that returns 3 channels"):
        learned.sample(seeds=[1], class_labels=1, **QUIET)


@pytest.mark.parametrize("first", [True, False])
def test_inference_mode_leaves_the_sampler_usable(sampler, first):
    images = []
    for inference in (first, not first, first):
        with torch.inference_mode(inference):
            images.append(sampler.sample(seeds=[1], class_labels=1, **QUIET))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_threads_take_turns(sampler):
    expected = [sampler.sample(seeds=[i], class_labels=1, **QUIET) for i in range(6)]
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(lambda i: sampler.sample(seeds=[i], class_labels=1, **QUIET), range(6)))
    assert all(torch.equal(a, b) for a, b in zip(images, expected, strict=True))


def test_a_callback_may_not_start_a_chain_of_the_same_sampler(sampler):
    def callback(*_):
        sampler.sample(seeds=[2], class_labels=1, **QUIET)

    with pytest.raises(RuntimeError, match="in the middle of a chain"):
        sampler.sample(seeds=[1], class_labels=1, callback=callback, **QUIET)
    assert sampler.sample(seeds=[1], class_labels=1, **QUIET).isfinite().all()


def test_a_callback_that_raises_leaves_the_model_in_its_mode(sampler, unet):
    unet.train()

    def callback(*_):
        assert not unet.training
        raise KeyError("stop")

    with pytest.raises(KeyError) as error:  # held, and with it the frames of the chain
        sampler.sample(seeds=[1], class_labels=1, callback=callback, **QUIET)
    assert unet.training
    assert error.value.args == ("stop",)


def test_two_samplers_on_one_model_in_training_mode():
    unet = make_unet(UNetConfig(**{**TINY.to_dict(), "dropout": 0.5})).train()
    options = {"num_inference_steps": 10, "clip_sample_range": 1.0, "shape": (3, 8, 8)}
    samplers = [Sampler(unet, NoiseSchedule.linear(), **options) for _ in range(2)]
    expected = samplers[0].sample(seeds=[1], class_labels=1, **QUIET)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            for image in pool.map(lambda s: s.sample(seeds=[1], class_labels=1, **QUIET), samplers):
                assert torch.equal(image, expected)
    assert all(module.training for module in unet.modules())


def test_functions_around_a_module_follow_its_device_dtype_and_mode(sampler):
    unet = make_unet(UNetConfig(**{**TINY.to_dict(), "dropout": 0.5})).to(torch.bfloat16).train()

    class Wrapper:
        def __init__(self, network):
            self.network = network

        def predict(self, x, t):
            return self.network(x, t, torch.ones(len(x), dtype=torch.int64))

    def around(network):
        return lambda x, t: network(x, t, torch.ones(len(x), dtype=torch.int64))

    options = {**sampler.options, "engine": "eager"}
    expected = Sampler(unet, sampler.schedule, **options).sample(seeds=[1], class_labels=1, **QUIET)
    for model in (around(unet), functools.partial(around(unet)), Wrapper(unet).predict):
        one = Sampler(model, sampler.schedule, **options)
        assert one.dtype == torch.bfloat16
        assert (one.sample(seeds=[1], **QUIET) - expected).abs().max() <= 0.1
    told = Sampler(lambda x, t: x, sampler.schedule, **{**options, "dtype": torch.float16})
    assert told.dtype == torch.float16
    with pytest.raises(ValueError, match=r"model: torch.float64 weights given"):
        Sampler(make_unet().double(), sampler.schedule)


def test_labels_given_in_one_call_and_not_in_the_next(sampler):
    """Of a network that takes them or not: neither call runs in the loop of the other."""

    def model(x, t, class_labels=None):
        return 0.1 * x if class_labels is None else 0.1 * x + class_labels[:, None, None, None]

    def fresh():
        return Sampler(model, sampler.schedule, **{**sampler.options, "engine": "eager", "device": "cpu"})

    one, two = fresh(), fresh()
    plain, labelled = one.sample(seeds=[1], **QUIET), two.sample(seeds=[1], class_labels=2, **QUIET)
    assert not torch.equal(plain, labelled)
    assert torch.equal(one.sample(seeds=[1], class_labels=2, **QUIET), labelled)
    assert torch.equal(two.sample(seeds=[1], **QUIET), plain)


def test_a_generator_per_image_survives_cutting(sampler):
    def generators():
        return [torch.Generator().manual_seed(i) for i in range(5)]

    whole = sampler.sample(class_labels=1, noise="torch", generator=generators(), **QUIET)
    cut = sampler.sample(class_labels=1, noise="torch", generator=generators(), max_batch=2, **QUIET)
    assert (whole - cut).abs().max() <= ACROSS_BATCHES


def test_numpy_values_are_as_good_as_pythons(sampler):
    expected = sampler.sample(seeds=[1, 2], class_labels=[1, 2], guidance_scale=2.0, **QUIET)
    image = sampler.sample(
        np.int64(2),
        seeds=np.array([1, 2], dtype=np.uint64),
        class_labels=np.array([1, 2]),
        guidance_scale=np.float32(2.0),
        shape=np.array([3, 8, 8]),
        max_batch=np.int32(2),
        **QUIET,
    )
    assert torch.equal(image, expected)
    one_for_all = sampler.sample(seeds=[1, 2], class_labels=np.int64(1), **QUIET)
    assert torch.equal(one_for_all, sampler.sample(seeds=[1, 2], class_labels=1, **QUIET))


def test_other_default_dtypes_change_nothing(sampler, unet):
    expected = sampler.sample(seeds=[1], class_labels=1, **QUIET)
    ends = torch.zeros(3, 8, 8), torch.ones(3, 8, 8)
    row = sampler.interpolate(*ends, 300, class_labels=1, **QUIET)
    torch.set_default_dtype(torch.float64)
    try:
        fresh = Sampler(unet, sampler.schedule, **sampler.options)
        assert (fresh.sample(seeds=[1], class_labels=1, **QUIET) - expected).abs().max() <= 1e-5
        assert (fresh.interpolate(*ends, 300, class_labels=1, **QUIET) - row).abs().max() <= 1e-5
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_step_has_a_trajectory(sampler):
    one = sampler.replace(num_inference_steps=1)
    call = {"seeds": [1], "class_labels": 1, **QUIET}
    assert one.sample_trajectory(predicted=True, **call).shape == (1, 1, 3, 8, 8)
    with pytest.raises(ValueError, match="callback: an argument that is none here given, batch_size, seeds"):
        sampler.sample_trajectory(callback=print, **call)


BAD_CALLS = {
    "batch_size: 0 given": {"batch_size": 0},
    "seeds: -1 given": {"seeds": [-1]},
    "seeds: 9223372036854775808 given": {"seeds": [2**63]},
    "given, a flat list of at least one integer": {"seeds": []},
    "seeds: 1.5 given": {"seeds": [1.5]},
    "batch_size, seeds: 3, 2 images given": {"batch_size": 3, "seeds": [1, 2]},
    "class_labels: 5 given, 0 to 3": {"class_labels": 5},
    "class_labels: -1 given": {"class_labels": -1},
    "class_labels: 3 for 2 images given": {"seeds": [1, 2], "class_labels": [0, 1, 2]},
    "guidance_scale: nan given": {"class_labels": 1, "guidance_scale": math.nan},
    "guidance_scale: a number other than 1 without class_labels": {"guidance_scale": 2.0},
    "noise: 'numpy' given": {"noise": "numpy"},
    "seeds: seeds with noise": {"noise": "torch", "seeds": [1]},
    "max_batch: 0 given": {"max_batch": 0},
    "draws for all at once": {"noise": "torch", "batch_size": 4, "max_batch": 2},
    r"shape: \(3, 8\) given": {"shape": (3, 8)},
    r"condition: shape \(1, 1, 4, 4\) given": {"condition": torch.zeros(1, 1, 4, 4)},
    r"x_T: shape \(3, 8, 8\) given": {"x_T": torch.zeros(3, 8, 8)},
    "x_T: torch.uint8 given": {"x_T": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)},
    "x_T: NaN or infinity": {"x_T": torch.full((1, 3, 8, 8), math.nan)},
    r"x_T: ndarray of shape \(1, 3, 8, 8\) given": {"x_T": np.zeros((1, 3, 8, 8))},
    "generator: 5 given": {"noise": "torch", "generator": 5},
    "batch_size: 1.5 given": {"batch_size": 1.5},
}


@pytest.mark.parametrize("message", BAD_CALLS)
def test_bad_calls_are_refused_by_name(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.sample(**BAD_CALLS[message], **QUIET)


BAD_OPTIONS = {
    "method: 'eular' given, one of ddpm, ddim, dpmpp_2m": {"method": "eular"},
    "num_inference_steps": {"num_inference_steps": 0},
    "num_inference_steps.*1001": {"num_inference_steps": 1001},
    "eta": {"method": "ddim", "eta": -0.1},
    "eta: 0.5, which belongs to ddim, sa_solver, heun and tcd, with method 'ddpm' given": {"eta": 0.5},
    "eta: nan, which belongs to ddim, sa_solver, heun and tcd, with": {"eta": math.nan},
    "sigma_scale": {"sigma_scale": -1.0},
    "prediction_type": {"prediction_type": "noise"},
    "variance_type": {"variance_type": "huge"},
    "timestep_spacing": {"timestep_spacing": "even"},
    "clip_sample_range": {"clip_sample_range": 0.0},
}


@pytest.mark.parametrize("message", BAD_OPTIONS)
def test_bad_options_are_refused_by_name(sampler, message):
    with pytest.raises(ValueError, match=message):
        sampler.replace(**BAD_OPTIONS[message])


def test_options_that_do_not_exist_are_refused(sampler):
    with pytest.raises(ValueError, match="steps: no option of Sampler given, method"):
        sampler.replace(steps=3)
    with pytest.raises(ValueError, match="for a network without classes"):
        Sampler(make_unet(UNetConfig(in_channels=3)), sampler.schedule, shape=(3, 8, 8)).sample(
            class_labels=1
        )
    without_null = Sampler(
        make_unet(dataclasses.replace(TINY, null_class=False)), sampler.schedule, shape=(3, 8, 8)
    )
    with pytest.raises(ValueError, match="class_labels: 4 given, 0 to 3 accepted"):
        without_null.sample(class_labels=4)
    for timestep in (-1, 1000, 1.5):
        with pytest.raises(ValueError, match=f"timestep: {timestep} given"):
            sampler.sample_from(torch.zeros(1, 3, 8, 8), timestep)

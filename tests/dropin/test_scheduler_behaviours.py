"""What diffusers' own tests ask of its schedulers, asked of the twins beside the originals, live."""

import copy
import functools
import inspect
import pickle

import pytest
import torch

from fastddpm.checks import BadArgument
from fastddpm.dropin import diffusers_schedulers
from fastddpm.plans.diffusers.solver_classes import SOLVERS

diffusers = pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOLERANCE = 1e-5
"""Of the largest value, or of 1: float32 on both sides."""
HALF = 8e-3
"""The same of float16 states, which the originals round in the middle of a step and the twins at its end."""

SHAPE = (2, 3, 4, 4)
NAMES = sorted([*SOLVERS, "DDPMScheduler", "DDIMScheduler"])
EXPONENTIAL = [
    name for name in NAMES if SOLVERS.get(name) and "solver_order" in getattr(diffusers, name)().config
]
IN_SIGMAS = [name for name in NAMES if name in SOLVERS and SOLVERS[name].in_sigmas]
WITHOUT_SPACING = ("LCMScheduler", "TCDScheduler", "DPMSolverSinglestepScheduler")
# Of solvers that go on from a state of their own, whatever they are given.
WITH_STATE = [
    "DPMSolverSinglestepScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


@functools.cache
def _made(name, options):
    return tuple(
        made(**dict(options))
        for made in (getattr(diffusers, name), getattr(diffusers_schedulers, f"Fast{name}"))
    )


def pair(name, **config):
    """The original and the twin, constructed alike; constructions are shared, since KDPM2's take long."""
    if name == "PNDMScheduler":
        config = {"skip_prk_steps": True, **config}
    return [copy.copy(scheduler) for scheduler in _made(name, tuple(sorted(config.items())))]


def both(name, run, **config):
    """What a function makes of the original and of the twin."""
    return [run(scheduler) for scheduler in pair(name, **config)]


def steps(scheduler, *, count=8, start=0, dtype=torch.float32, change=None, shape=SHAPE, **options):
    """The states of a loop; ``change`` is what the caller makes of each before it is given back."""
    if count:
        scheduler.set_timesteps(count)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator)
    if start:
        noise = torch.randn(shape, generator=generator)
        x = scheduler.add_noise(x, noise, scheduler.timesteps[start : start + 1])
    else:
        x = x * scheduler.init_noise_sigma
    x, states = x.to(dtype), []
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generator
    for t in scheduler.timesteps[start:]:
        m = torch.tanh(0.7 * scheduler.scale_model_input(x, t) + 1e-3 * float(t)).to(dtype)
        x = scheduler.step(m, t, x, **options).prev_sample
        states.append(x.clone())
        x = x if change is None else change(x, len(states))
    return states


def close(states, limit=TOLERANCE):
    theirs, ours = states
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a.isfinite(), b.isfinite())
        a, b = a.double().nan_to_num(0, 0, 0), b.double().nan_to_num(0, 0, 0)
        assert (a - b).abs().max() <= limit * a.abs().max().clamp(min=1)


CONFIGURATIONS = [
    *((name, {"beta_schedule": "scaled_linear"}) for name in NAMES),
    *((name, {"prediction_type": "v_prediction"}) for name in NAMES),
    *((name, {"beta_start": 0.001, "beta_end": 0.02}) for name in NAMES if "KDPM2" not in name),
    *((name, {"timestep_spacing": "trailing"}) for name in NAMES if name not in WITHOUT_SPACING),
    *((name, {"timestep_spacing": "leading", "steps_offset": 1}) for name in ("DDIMScheduler", *IN_SIGMAS)),
    *((name, {"solver_order": order}) for name in EXPONENTIAL for order in (1, 2, 3)),
    *((name, {"prediction_type": "sample"}) for name in EXPONENTIAL),
    *((name, {"thresholding": True, "sample_max_value": 0.5}) for name in EXPONENTIAL),
    *((name, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}) for name in EXPONENTIAL[1:]),
    *((name, {"use_karras_sigmas": True}) for name in [*EXPONENTIAL, *IN_SIGMAS] if "Ancestral" not in name),
    *((name, {"use_exponential_sigmas": True}) for name in [*EXPONENTIAL, "EulerDiscreteScheduler"]),
    *((name, {"variance_type": "learned_range"}) for name in EXPONENTIAL if name.startswith("DPM")),
    *((name, {"lambda_min_clipped": -5.1}) for name in EXPONENTIAL if name.startswith("DPM")),
    # (bh1 to sigma 0 is NaN in the original.)
    *(
        (
            "UniPCMultistepScheduler",
            {"solver_type": kind, "solver_order": 3, "final_sigmas_type": "sigma_min"},
        )
        for kind in ("bh1", "bh2")
    ),
    *(
        ("DPMSolverMultistepScheduler", {"algorithm_type": kind, "final_sigmas_type": "sigma_min"})
        for kind in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
    ),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun", "euler_at_final": True}),
    ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}),
    ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("DDIMScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("DDPMScheduler", {"variance_type": "other"}),
    ("LCMScheduler", {"thresholding": True}),
    ("PNDMScheduler", {"skip_prk_steps": False}),
    ("EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}),
]


# A scheduler of preconditioned networks has no betas, and does not predict the image.
CONFIGURATIONS = [
    (name, config)
    for name, config in CONFIGURATIONS
    if not name.startswith("EDM")
    or (set(config) <= set(getattr(diffusers, name)().config) and config.get("prediction_type") != "sample")
]


@pytest.mark.parametrize(("name", "config"), CONFIGURATIONS)
def test_whole_loops(name, config):
    close(both(name, steps, **config))


@pytest.mark.parametrize("name", NAMES)
def test_from_the_middle_in_half_precision_and_other_ranks(name):
    if name[:3] not in ("LCM", "TCD"):
        close(both(name, lambda s: steps(s, count=10, start=4 * s.order)))
    close(both(name, functools.partial(steps, dtype=torch.float16)), HALF)
    close(both(name, functools.partial(steps, dtype=torch.float64)))
    close(both(name, functools.partial(steps, shape=(4, 3, 8))))
    close(both(name, functools.partial(steps, shape=(5, 2))))


@pytest.mark.parametrize("name", NAMES)
def test_set_anew(name):
    """Chains after one another, the second with other steps, and on a device named by a string."""

    def run(scheduler):
        first = steps(scheduler, count=6)
        scheduler.set_timesteps(5, device="cpu")
        assert getattr(scheduler, "step_index", None) is None
        second = steps(scheduler, count=0)
        if hasattr(scheduler, "step_index"):
            assert scheduler.step_index == len(scheduler.timesteps)
        return first + second

    close(both(name, run))


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("in_place", [False, True])
def test_samples_that_the_caller_changes(name, in_place):
    """Inpainting: what the original keeps is what it reached, not what it is given."""

    def change(x, number):
        return x.mul_(0.9) if in_place else x * 0.9

    close(both(name, functools.partial(steps, change=change)))
    with torch.inference_mode():
        close(both(name, functools.partial(steps, change=change)))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "SASolverScheduler"])  # it holds a lambda
def test_copies_in_the_middle(name):
    """A copy and a pickle go on from where the chain is, and the chain is not theirs."""
    scheduler = pair(name)[1]
    others = {}

    def copied(x, number):
        if number == 3:
            others.update(copied=copy.deepcopy(scheduler), read=pickle.loads(pickle.dumps(scheduler)), x=x)
        return x

    deterministic = {"eta": 0.0} if name in ("TCDScheduler", "DDIMScheduler") else {}
    whole = steps(scheduler, count=7, change=copied, **deterministic)
    is_random = name in ("DDPMScheduler", "LCMScheduler") or "Ancestral" in name
    for other in (others["copied"], others["read"]):
        x = others["x"]
        for number, t in enumerate(other.timesteps[3:]):
            m = torch.tanh(0.7 * other.scale_model_input(x, t) + 1e-3 * float(t))
            x = other.step(m, t, x, **deterministic).prev_sample
            if not is_random:
                assert torch.allclose(x, whole[3 + number], rtol=0, atol=1e-5 * float(x.abs().max()))


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_predictions_that_the_caller_gives(name):
    def run(scheduler):
        scheduler.set_timesteps(9)
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        order = scheduler.config.solver_order
        scheduler.model_outputs = [0.1 * x + 0.2, 0.1 * x + 0.15, 0.1 * x + 0.1][:order]
        return [scheduler.step(0.1 * x, t, x).prev_sample for t in scheduler.timesteps[:3]]

    close(both(name, run))
    config = {"num_train_timesteps": 25}

    def repeated(scheduler):
        scheduler.set_timesteps(25)
        assert len(scheduler.timesteps) == scheduler.num_inference_steps
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        return [scheduler.step(0.1 * x, t, x).prev_sample for t in scheduler.timesteps[:3]]

    if "UniPC" not in name and "Single" not in name and not name.startswith("EDM"):
        close(both(name, repeated, **config))
        twin = pair(name, **config)[1]
        repeated(twin)
        assert "one noise level" in str(twin.report())


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_without_set_timesteps(name):
    def run(scheduler):
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        generator = torch.Generator().manual_seed(1)
        return [scheduler.step(0.1 * x, t, x, generator=generator).prev_sample for t in (1.0, 0.0)]

    close(both(name, run))


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
@pytest.mark.parametrize("betas", [(0.01, 0.2), (0.1, 2.0)])
def test_betas_of_which_later_rows_are_not_finite(name, betas):
    def run(scheduler):
        scheduler.set_timesteps(50)
        x = torch.linspace(-1, 1, 96).reshape(SHAPE)
        return [scheduler.step(0.1 * x, 0, x).prev_sample]

    close(both(name, run, beta_start=betas[0], beta_end=betas[1]))


def test_gradients_in_part_of_a_chain():
    """Of a solver that remembers nothing; one that does says so, since the original's memory is empty."""

    def run(scheduler):
        scheduler.set_timesteps(4)
        x = torch.ones(SHAPE)
        for number, t in enumerate(scheduler.timesteps):
            m = 0.1 * scheduler.scale_model_input(x, t).detach()
            x = scheduler.step(m.requires_grad_(number == 2), t, x.detach()).prev_sample
        return [x.detach()]

    close(both("EulerDiscreteScheduler", run))
    with pytest.raises(BadArgument, match="a gradient in a chain begun without"):
        run(pair("DPMSolverMultistepScheduler")[1])


def test_noise_that_the_caller_gives():
    noise = torch.linspace(-2, 2, 96).reshape(SHAPE)
    close(
        both(
            "DPMSolverMultistepScheduler",
            functools.partial(steps, variance_noise=noise),
            algorithm_type="sde-dpmsolver++",
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_add_noise_and_folders(name, tmp_path):
    original, twin = pair(name)
    for scheduler in (original, twin):
        scheduler.set_timesteps(9)
    x, noise = torch.ones(SHAPE), torch.linspace(-2, 2, 96).reshape(SHAPE)
    t = original.timesteps[5][None]
    assert torch.equal(original.add_noise(x, noise, t), twin.add_noise(x, noise, t))
    twin.save_pretrained(tmp_path)
    read = type(twin).from_pretrained(tmp_path)
    assert type(read) is type(twin)
    close([steps(original), steps(read)])

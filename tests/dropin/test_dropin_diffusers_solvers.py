"""Fused twins of diffusers' solvers against the solvers: what diffusers' own tests of schedulers look at."""

import copy
import inspect
import pickle

import pytest
import torch

import fastddpm
from fastddpm.dropin import diffusers_schedulers
from fastddpm.plans.diffusers.solver_classes import SOLVERS

diffusers = pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors: hundreds of thousands.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TOLERANCE = 1e-5
"""Of the largest value: float32 on both sides."""

SHAPE = (2, 3, 4, 4)
NAMES = sorted(SOLVERS)
WITH_X0 = [name for name in NAMES if "Discrete" in name]


def pair(name, **config):
    """The original, and the twin of another one like it."""
    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **config}
    if name == "PNDMScheduler":
        options.setdefault("skip_prk_steps", True)
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    options = {key: value for key, value in options.items() if key in known or key in config}
    return cls(**options), fastddpm.optimize(cls(**options))


def network(x, t):
    return torch.tanh(0.9 * x + 0.001 * float(t))


def chain(scheduler, timesteps=None, *, u=None, results=None, **step_options):
    """The last state of a loop as pipelines have it."""
    if u is None:
        u = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * float(scheduler.init_noise_sigma)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step_options.setdefault("generator", torch.Generator().manual_seed(2))
    for t in scheduler.timesteps if timesteps is None else timesteps:
        m = network(scheduler.scale_model_input(u, t), t)
        made = scheduler.step(m, t, u, **step_options)
        u = made.prev_sample
        if results is not None:
            results.append(made)
    return u


def close(got, expected):
    assert (got - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("name", [*NAMES, "PNDMScheduler, Runge-Kutta"])
def test_loops(name, monkeypatch):
    """State by state, with the other results of a step; the original's step is not called."""
    name, *begin = name.split(", ")
    original, twin = pair(name, **({"skip_prk_steps": False} if begin else {}))
    expected, got = [], []
    original.set_timesteps(9)
    chain(original, results=expected)
    monkeypatch.setattr(type(original), "step", None)
    twin.set_timesteps(9)
    chain(twin, results=got)
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert type(mine) is type(theirs)
        assert list(mine) == list(theirs)
        for key in theirs:
            close(mine[key], theirs[key])
    twin.set_timesteps(5)
    chain(twin)
    twin.set_timesteps(9)
    again = []
    chain(twin, results=again)
    assert torch.equal(again[-1].prev_sample, got[-1].prev_sample)


@pytest.mark.parametrize("name", NAMES)
def test_tuples_and_dtypes(name):
    original, twin = pair(name)
    for scheduler in (original, twin):
        scheduler.set_timesteps(6)
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        t = original.timesteps[0]
        x, m = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)
        before = x.clone()
        options = [{}, {}]
        if "generator" in inspect.signature(original.step).parameters:
            options = [{"generator": torch.Generator().manual_seed(4)} for _ in range(2)]
        for scheduler in (original, twin):
            scheduler.set_timesteps(6)
            scheduler.scale_model_input(x, t)
        expected = original.step(m, t, x, return_dict=False, **options[0])
        got = twin.step(m, t, x, return_dict=False, **options[1])
        assert len(got) == len(expected)
        assert got[0].dtype == dtype
        rounding = {torch.bfloat16: 0.02}.get(dtype, TOLERANCE)
        assert (got[0].double() - expected[0].double()).abs().max() <= rounding * expected[0].abs().max()
        assert torch.equal(x, before)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"LCMScheduler", "TCDScheduler"}))
def test_from_the_middle(name):
    """Image-to-image: noise is added at a timestep, and the chain begins there, by its place or its value."""
    for by_place in (True, False):
        states = []
        for scheduler in pair(name):
            scheduler.set_timesteps(10)
            start = 4 * scheduler.order
            rest = scheduler.timesteps[start:]
            if by_place and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(start)
            clean, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(5))
            states.append(chain(scheduler, rest, u=scheduler.add_noise(clean, noise, rest[:1].repeat(2))))
        close(states[1], states[0])


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("EulerDiscreteScheduler", {"timesteps": [900, 500, 123, 7]}),
        ("EulerDiscreteScheduler", {"sigmas": [14.0, 6.0, 1.5, 0.3, 0.0]}),
        ("HeunDiscreteScheduler", {"timesteps": [900, 500, 123, 7]}),
        ("DPMSolverMultistepScheduler", {"timesteps": [900, 500, 123, 7]}),
        ("DPMSolverSinglestepScheduler", {"timesteps": [900, 500, 123, 7]}),
        ("LCMScheduler", {"timesteps": [999, 499, 19]}),
        ("TCDScheduler", {"timesteps": [999, 499, 19]}),
    ],
)
def test_timesteps_and_sigmas_of_the_caller(name, given):
    original, twin = pair(name)
    for scheduler in (original, twin):
        scheduler.set_timesteps(**given)
    close(chain(twin), chain(original))


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_folders(name, tmp_path):
    original, twin = pair(name)
    twin.set_timesteps(5)
    expected = chain(twin)
    copies = [copy.deepcopy(twin)]
    if name != "SASolverScheduler":  # which holds a lambda
        copies.append(pickle.loads(pickle.dumps(twin)))
    for other in copies:
        other.set_timesteps(5)
        assert torch.equal(chain(other), expected)
    twin.save_pretrained(tmp_path)
    read = getattr(diffusers, name).from_pretrained(tmp_path)
    assert type(read) is getattr(diffusers, name)
    original.set_timesteps(5)  # which may settle options
    assert {name: value for name, value in read.config.items() if name[0] != "_"} == {
        name: value for name, value in original.config.items() if name[0] != "_"
    }
    assert isinstance(twin, type(original))
    assert type(twin) is getattr(diffusers_schedulers, f"Fast{name}")
    assert inspect.signature(twin.step) == inspect.signature(original.step)
    assert name in str(twin.report())


CHURNS = [
    {"s_churn": 3.0},
    {"s_churn": 80.0, "s_noise": 1.01},  # as much as there may be
    {"s_churn": 2.0, "s_tmin": 0.05, "s_tmax": 1.5},
    {"s_churn": 2.0, "s_noise": 0.0},  # which draws all the same
]


@pytest.mark.parametrize("churn", CHURNS, ids=str)
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("EulerDiscreteScheduler", {"prediction_type": "sample", "use_karras_sigmas": True}),
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.3}),
    ],
    ids=str,
)
def test_churn(name, config, churn, monkeypatch):
    """Every state and x0, whose noise is in it, and the same numbers drawn."""
    original, twin = pair(name, **config)
    expected, got = [], []
    drawn = [torch.Generator().manual_seed(2) for _ in range(2)]
    original.set_timesteps(7)
    chain(original, results=expected, generator=drawn[0], **churn)
    monkeypatch.setattr(type(original), "step", None)
    twin.set_timesteps(7)
    chain(twin, results=got, generator=drawn[1], **churn)
    assert torch.equal(drawn[0].get_state(), drawn[1].get_state())
    for mine, theirs in zip(got, expected, strict=True):
        close(mine.prev_sample, theirs.prev_sample)
        close(mine.pred_original_sample, theirs.pred_original_sample)


def test_churn_that_differs_from_step_to_step():
    states = []
    for scheduler in pair("EDMEulerScheduler"):
        scheduler.set_timesteps(6)
        generator = torch.Generator().manual_seed(3)
        u = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
        for number, t in enumerate(scheduler.timesteps):
            m = network(scheduler.scale_model_input(u, t), t)
            u = scheduler.step(m, t, u, s_churn=float(number % 3), generator=generator).prev_sample
        states += [u, torch.randn(3, generator=generator)]
    close(states[2], states[0])
    assert torch.equal(states[3], states[1])


def test_a_prediction_that_the_caller_gives():
    """Of EDM's Euler: the original's step goes on from it."""
    states = []
    for scheduler in pair("EDMEulerScheduler"):
        scheduler.set_timesteps(4)
        u = torch.ones(SHAPE)
        scheduler.scale_model_input(u, scheduler.timesteps[0])
        given = {"pred_original_sample": 0.1 * u}
        states.append(scheduler.step(u, scheduler.timesteps[0], u, **given).prev_sample)
    assert torch.equal(*states)


def test_what_goes_through_the_originals_step():
    original, twin = pair("LMSDiscreteScheduler")
    for scheduler in (original, twin):
        scheduler.set_timesteps(5)
    close(chain(twin, order=2), chain(original, order=2))
    _, twin = pair("DPMSolverMultistepScheduler")
    twin.set_timesteps(5)
    x = torch.ones(SHAPE, requires_grad=True)
    twin.step(x * 2, twin.timesteps[0], x).prev_sample.sum().backward()
    assert x.grad is not None
    _, twin = pair("EulerDiscreteScheduler")
    with pytest.raises(ValueError, match="not supported"):
        twin.set_timesteps(5) or twin.step(x, 3, x)


def test_refused():
    with pytest.raises(ValueError, match="variance_type, previous_timestep"):
        fastddpm.optimize(diffusers.EulerDiscreteScheduler(), previous_timestep="consistent")
    _, twin = pair("UniPCMultistepScheduler")
    x = torch.ones(SHAPE)
    with pytest.raises(ValueError, match="set_timesteps first"):
        twin.step(x, 3, x)
    twin.set_timesteps(3)
    chain(twin)
    with pytest.raises(ValueError, match="timestep: step 3 of 3"):
        twin.step(x, twin.timesteps[-1], x)


def test_schedulers_that_compute_something_else_are_not_taken():
    for name in (
        "CMStochasticIterativeScheduler",
        "FlowMatchEulerDiscreteScheduler",
        "CogVideoXDPMScheduler",
    ):
        with pytest.raises((ValueError, TypeError)):
            fastddpm.optimize(getattr(diffusers, name)())

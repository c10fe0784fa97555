"""NoiseSchedule against diffusers, denoising-diffusion-pytorch and the stored buffers of two public codes."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fastddpm.schedule import NoiseSchedule

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "schedules.safetensors")

ONE_OF_EACH = [
    NoiseSchedule.linear(50),
    NoiseSchedule.scaled_linear(50, 0.00085, 0.012),
    NoiseSchedule.quad(50),
    NoiseSchedule.cosine(50, s=0.01, max_beta=0.9),
    NoiseSchedule.sigmoid(50, start=-2, end=4, tau=0.7),
    NoiseSchedule.warmup(0.1, 50),
    NoiseSchedule.const(50, 0.03),
    NoiseSchedule.jsd(50),
    NoiseSchedule.from_betas([0.1, 0.2, 0.3]),
    NoiseSchedule.linear(50).rescaled_zero_terminal_snr(),
]


def linear_of_24():
    return NoiseSchedule.linear(24, 1e-4 * 1000 / 24, 0.02 * 1000 / 24)


@pytest.mark.parametrize(
    ("kind", "schedule"), [("linear", linear_of_24()), ("cosine", NoiseSchedule.cosine(24))]
)
def test_abarankab_buffers(kind, schedule):
    golden = {
        name.split(".")[1]: values for name, values in GOLDEN.items() if name.startswith(f"abarankab_{kind}")
    }
    np.testing.assert_allclose(schedule.betas, golden["betas64"], rtol=1e-13)
    for name in ("alphas_cumprod", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"):
        np.testing.assert_allclose(getattr(schedule, name), golden[name], rtol=1e-7, err_msg=name)


def test_sr3_buffers():
    schedule = NoiseSchedule.linear(24, 1 / 24000, 10 / 24)
    names = [name.split(".")[1] for name in GOLDEN if name.startswith("sr3_linear")]
    assert len(names) == 12
    names.remove("log_one_minus_alphas_cumprod")
    for name in names:
        np.testing.assert_allclose(
            getattr(schedule, name), GOLDEN[f"sr3_linear.{name}"], rtol=2e-7, atol=1e-12, err_msg=name
        )


@pytest.mark.parametrize("total", [24, 1000])
@pytest.mark.parametrize("kind", ["linear", "cosine", "sigmoid"])
def test_lucidrains(kind, total):
    peer = pytest.importorskip("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    expected = getattr(peer, f"{kind}_beta_schedule")(total).numpy()
    if kind == "linear":  # that library scales the usual range by 1000/T
        schedule = NoiseSchedule.linear(total, 0.1 / total, 20 / total)
    else:
        schedule = getattr(NoiseSchedule, kind)(total)
    np.testing.assert_allclose(schedule.betas, expected, rtol=1e-11)


@pytest.mark.parametrize("total", [20, 1000])
@pytest.mark.parametrize(
    ("kind", "peer_kind"),
    [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")],
)
@pytest.mark.parametrize("rescale", [False, True])
def test_diffusers(kind, peer_kind, total, rescale):
    peer = pytest.importorskip("diffusers").DDPMScheduler(
        num_train_timesteps=total, beta_schedule=peer_kind, rescale_betas_zero_snr=rescale
    )
    schedule = getattr(NoiseSchedule, kind)(total)
    if rescale:
        schedule = schedule.rescaled_zero_terminal_snr()
        assert schedule.betas[-1] == 1
    # Its tables are float32: alphas_cumprod is a product of up to 1000 rounded factors, or a difference.
    np.testing.assert_allclose(schedule.alphas_cumprod, peer.alphas_cumprod, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(schedule.betas, peer.betas, rtol=1e-3, atol=1e-6)


def test_sr3_forms():
    """The remaining schedules of the SR3 repository, from their definitions."""
    start, end, total = 1e-6, 1e-2, 40
    quad = NoiseSchedule.quad(total, start, end)
    assert np.allclose(np.diff(np.sqrt(quad.betas)), (0.1 - 1e-3) / (total - 1))
    for fraction, rising in [(0.1, 4), (0.5, 20), (0.0, 0), (1.0, 40)]:
        warmup = NoiseSchedule.warmup(fraction, total, start, end)
        assert np.allclose(
            warmup.betas[:rising], [start + i * (end - start) / (rising - 1) for i in range(rising)]
        )
        assert (warmup.betas[rising:] == end).all()
    assert (NoiseSchedule.const(total, end).betas == end).all()
    jsd = NoiseSchedule.jsd(4)
    assert np.allclose(jsd.betas, [1 / 4, 1 / 3, 1 / 2, 1])
    assert np.allclose(jsd.alphas_cumprod, [3 / 4, 2 / 4, 1 / 4, 0])


def test_zero_terminal_snr_keeps_the_rest_in_proportion():
    schedule = NoiseSchedule.linear(30, 1e-3, 0.2)
    rescaled = schedule.rescaled_zero_terminal_snr()
    before, after = schedule.sqrt_alphas_cumprod, rescaled.sqrt_alphas_cumprod
    assert after[-1] == 0
    assert np.isclose(after[0], before[0], rtol=1e-14)
    assert np.allclose(np.diff(after) / np.diff(before), before[0] / (before[0] - before[-1]))
    assert rescaled.rescaled_zero_terminal_snr() == rescaled
    with pytest.raises(ValueError, match="num_train_timesteps"):
        NoiseSchedule.from_betas([0.5]).rescaled_zero_terminal_snr()


def test_derived_quantities_at_zero_snr():
    schedule = NoiseSchedule.jsd(4)
    assert schedule.sqrt_recip_alphas_cumprod[-1] == np.inf
    assert schedule.sqrt_recipm1_alphas_cumprod[-1] == np.inf
    assert schedule.log_snr[-1] == -np.inf
    assert schedule.posterior_mean_coef2[-1] == 0
    for name in ("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "snr"):
        assert np.isfinite(getattr(schedule, name)).all(), name


def test_snr():
    schedule = NoiseSchedule.linear(100)
    signal, noise = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    assert np.allclose(schedule.snr, (signal / noise) ** 2)
    assert np.allclose(schedule.log_snr, 2 * (np.log(signal) - np.log(noise)))


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=repr)
def test_survives_json_and_copies(schedule):
    document = json.loads(json.dumps(schedule.to_dict(), allow_nan=False))
    again = NoiseSchedule.from_dict(document)
    assert again == schedule
    assert again.to_dict() == schedule.to_dict()
    assert repr(again) == repr(schedule)
    schedule.alphas_cumprod.sum()  # what is derived is kept, and copied or not
    for same in (again, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule), copy.copy(schedule)):
        assert same == schedule
        assert same.to_dict() == schedule.to_dict()
        for name in ("betas", "alphas", "alphas_cumprod", "posterior_variance"):
            with pytest.raises(ValueError, match="read-only"):
                getattr(same, name)[0] = 0.5


def test_a_name_is_for_the_named_constructors():
    """A schedule with betas of its own under the name of a formula would be read back as that formula."""
    betas = [0.1, 0.2, 0.3]
    for options in ({"name": "linear"}, {"name": "mine"}, {"parameters": {}}, {"zero_terminal_snr": True}):
        with pytest.raises(TypeError):
            NoiseSchedule(betas, **options)
    assert NoiseSchedule.from_dict(NoiseSchedule(betas).to_dict()) == NoiseSchedule.from_betas(betas)


def test_repr_is_the_call_that_makes_it():
    for schedule in ONE_OF_EACH:
        if schedule.name != "custom":
            assert eval(repr(schedule)) == schedule
    assert "3 betas" in repr(NoiseSchedule.from_betas([0.1, 0.2, 0.3]))


def test_equality_is_of_the_betas():
    linear = NoiseSchedule.linear(10)
    assert linear == NoiseSchedule.from_betas(linear.betas)
    assert hash(linear) == hash(NoiseSchedule.from_betas(linear.betas))
    assert linear != NoiseSchedule.linear(11)
    assert linear != NoiseSchedule.linear(10, beta_end=0.03)
    assert linear != "linear"


def test_immutable():
    schedule = NoiseSchedule.linear(10)
    for name in ("betas", "alphas", "alphas_cumprod", "posterior_variance", "log_snr"):
        array = getattr(schedule, name)
        assert array.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0.5
    with pytest.raises(AttributeError, match="immutable"):
        schedule.betas = np.ones(3)
    with pytest.raises(AttributeError, match="immutable"):
        del schedule.betas
    given = np.full(4, 0.1)
    kept = NoiseSchedule.from_betas(given)
    given[0] = 0.9
    assert kept.betas[0] == 0.1


def test_sizes_and_tensors():
    schedule = NoiseSchedule.cosine(7)
    assert len(schedule) == schedule.num_train_timesteps == 7
    single, double = schedule.tensor("betas"), schedule.tensor("betas", dtype=torch.float64)
    assert single.dtype == torch.float32
    assert double.tolist() == schedule.betas.tolist()
    assert NoiseSchedule.from_betas(double) == schedule
    with pytest.raises(ValueError, match="'beta'"):
        schedule.tensor("beta")


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        ([], "non-empty"),
        ([[0.1, 0.2]], "one-dimensional"),
        (["a"], "numbers"),
        ([0.1, 0.0], r"betas\[1\] = 0.0"),
        ([0.1, -0.2, 0.3], r"betas\[1\] = -0.2"),
        ([0.1, 1.0, 0.3], r"betas\[1\] = 1.0"),
        ([0.1, 1.1], r"betas\[1\] = 1.1"),
        ([float("nan"), 0.1], r"betas\[0\] = nan"),
        ([1e-20, 0.1], r"betas\[0\] = 1e-20"),
    ],
)
def test_bad_betas(betas, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_betas(betas)


def test_beta_may_be_one_at_the_end():
    assert NoiseSchedule.from_betas([0.1, 1.0]).alphas_cumprod[-1] == 0
    assert NoiseSchedule.from_betas([1.0]).alphas_cumprod[-1] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseSchedule.linear(0), r"num_train_timesteps: 0 given, an integer in \[1, 1000000\]"),
        (lambda: NoiseSchedule.jsd(2.5), "num_train_timesteps"),
        (lambda: NoiseSchedule.cosine(True), "num_train_timesteps"),
        (
            lambda: NoiseSchedule.linear(10, beta_start=0.0),
            r"beta_start: 0.0 given, a finite number in \(0, 1\]",
        ),
        (lambda: NoiseSchedule.linear(10, beta_end=1.5), "beta_end"),
        (lambda: NoiseSchedule.scaled_linear(10, beta_start=float("nan")), "beta_start"),
        (lambda: NoiseSchedule.quad(10, beta_end="0.02"), "beta_end"),
        (lambda: NoiseSchedule.cosine(10, s=-1.0), "s: -1.0 given, a finite number of at least 0"),
        (lambda: NoiseSchedule.cosine(10, max_beta=0.0), "max_beta"),
        (lambda: NoiseSchedule.sigmoid(10, start=3, end=-3), "start, end: 3.0, -3.0 given, start < end"),
        (lambda: NoiseSchedule.sigmoid(10, tau=0.0), "tau"),
        (lambda: NoiseSchedule.warmup(1.5), "fraction"),
        (lambda: NoiseSchedule.const(10, 2.0), r"beta: 2.0 given, a finite number in \(0, 1\]"),
        (lambda: NoiseSchedule.const(10, 1.0), r"betas\[0\] = 1.0"),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "mapping with a 'name'"),
        ({}, "mapping with a 'name'"),
        ({"name": "cubic"}, "name: 'cubic' given, one of linear"),
        ({"name": "custom"}, "schedule: the keys .* given"),
        ({"name": "custom", "betas": "many"}, "betas: .* given"),
        ({"name": "linear", "betas": [0.1]}, "schedule: the keys .* given"),
        ({"name": "linear", "parameters": [1000]}, "parameters: .* given, a mapping"),
        ({"name": "linear", "parameters": {"steps": 5}}, "parameters: .* for a schedule named"),
        ({"name": "linear", "parameters": {"num_train_timesteps": "5"}}, "num_train_timesteps"),
        ({"name": "linear", "zero_terminal_snr": 1}, "true or false"),
        ({"name": "warmup", "parameters": {}}, "parameters: .* for a schedule named"),
    ],
    ids=str,
)
def test_bad_documents(document, message):
    with pytest.raises(ValueError, match=message):
        NoiseSchedule.from_dict(document)

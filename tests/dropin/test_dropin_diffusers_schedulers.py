"""FastDDPMScheduler and FastDDIMScheduler against diffusers': steps, chains, saving, the device."""

import copy
import inspect
import itertools
import json
import pickle

import pytest
import torch
from fake_cuda_steps import Devices
from kernel_build import TARGETS, pretended
from torch._subclasses.fake_tensor import FakeTensorMode

import fastddpm
from fastddpm.dropin._diffusers import rows as rows_module

diffusers = pytest.importorskip("diffusers")
from fastddpm.dropin import FastDDIMScheduler, FastDDPMScheduler  # noqa: E402
from fastddpm.dropin.diffusers_schedulers import FastDDIMInverseScheduler  # noqa: E402

STEP = 1e-5
"""Largest difference of one step, relative to the step's largest value."""
CHAIN = 1e-4
SHAPE = (2, 3, 4, 5)
PAIRS = [(diffusers.DDPMScheduler, FastDDPMScheduler), (diffusers.DDIMScheduler, FastDDIMScheduler)]

SHARED = [
    {},
    {"prediction_type": "sample", "clip_sample": False},
    {"prediction_type": "v_prediction", "timestep_spacing": "linspace"},
    {"clip_sample": False},
    {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.4},
    {"timestep_spacing": "trailing", "clip_sample_range": 0.5},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    {"beta_schedule": "squaredcos_cap_v2", "steps_offset": 2},
]
DDPM = [
    *SHARED,
    {"variance_type": "fixed_small_log"},
    {"variance_type": "fixed_large"},
    {"variance_type": "learned_range"},
    {"variance_type": "learned"},
]


def output_for(config, scale=1.0, seed=0, dtype=torch.float32):
    """A model's output, with the second half that the variance_type asks for."""
    generator = torch.Generator().manual_seed(seed)
    m = torch.randn(SHAPE, generator=generator) * scale
    if config.get("variance_type") == "learned_range":
        m = torch.cat([m, torch.rand(SHAPE, generator=generator) * 2 - 1], 1)
    elif config.get("variance_type") == "learned":
        m = torch.cat([m, torch.rand(SHAPE, generator=generator) * 0.1], 1)
    return m.to(dtype)


def hold_step(original, fast, t, m, x, tolerance=STEP, **options):
    """One step of both with the same generator: both outputs, dtypes, draws, and the inputs unchanged."""
    kept = x.clone(), m.clone()
    results, states = [], []
    for scheduler in (original, fast):
        generator = torch.Generator().manual_seed(11)
        argument = {} if "variance_noise" in options else {"generator": generator}
        results.append(scheduler.step(m, t, x, **argument, **options))
        states.append(generator.get_state())
    expected, got = results
    assert type(got) is type(expected)
    assert states[0].equal(states[1]), f"draws differently at {t}"
    assert x.equal(kept[0])
    assert m.equal(kept[1])
    rounding = 0.0
    if x.dtype in (torch.float16, torch.bfloat16):
        # There diffusers rounds to that dtype, and x0 = (x - sigma m)/alpha cancels: the rounding of x and m
        # times 1/alpha, up to 157.
        alpha = float(original.alphas_cumprod[int(t)]) ** 0.5 or 1.0
        rounding = 2 * torch.finfo(x.dtype).eps * float((x.abs().max() + m.abs().max()) / alpha)
    for name, slack in (("prev_sample", 0.0), ("pred_original_sample", rounding)):
        theirs, ours = getattr(expected, name), getattr(got, name)
        assert ours.dtype == theirs.dtype
        assert torch.isfinite(theirs).all()
        difference = (ours.double() - theirs.double()).abs().max()
        largest = theirs.double().abs().max()
        assert difference <= max(tolerance * largest, slack), f"{name} at {t}: {difference / largest:.1e}"


@pytest.mark.parametrize("config", DDPM, ids=str)
def test_ddpm_steps(config):
    torch.manual_seed(0)
    original, fast = diffusers.DDPMScheduler(**config), FastDDPMScheduler(**config)
    for steps in (None, 10, 61):
        if steps:
            original.set_timesteps(steps)
            fast.set_timesteps(steps)
        assert fast.timesteps.equal(original.timesteps)
        for k, t in enumerate(original.timesteps):
            if k % 97 in (0, 5) or k > len(original.timesteps) - 3:
                m = output_for(config, seed=k)
                hold_step(original, fast, t, m, torch.randn(SHAPE))


@pytest.mark.parametrize("config", SHARED, ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"eta": 0.6}, {"eta": 0.9, "use_clipped_model_output": True}], ids=str
)
def test_ddim_steps(config, options):
    torch.manual_seed(0)
    original, fast = diffusers.DDIMScheduler(**config), FastDDIMScheduler(**config)
    for steps in (10, 61):
        original.set_timesteps(steps)
        fast.set_timesteps(steps)
        for k, t in enumerate(original.timesteps):
            hold_step(original, fast, t, output_for(config, seed=k), torch.randn(SHAPE), **options)
        # Timesteps that are not in the list, as a number and as a tensor.
        for t in (3, torch.tensor(700)):
            hold_step(original, fast, t, output_for(config), torch.randn(SHAPE), **options)


def test_given_variance_noise():
    original, fast = diffusers.DDIMScheduler(), FastDDIMScheduler()
    original.set_timesteps(5)
    fast.set_timesteps(5)
    m, x, z = torch.randn(3, *SHAPE)
    hold_step(original, fast, 400, m, x, eta=0.8, variance_noise=z)
    hold_step(original, fast, 400, m, x, eta=0.0, variance_noise=z)
    with pytest.raises(ValueError, match="variance_noise: one with a generator given"):
        fast.step(m, 400, x, eta=0.5, variance_noise=z, generator=torch.Generator())


@pytest.mark.parametrize(
    "config", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"clip_sample": False}], ids=str
)
@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_chains(kind, config, steps):
    original, fast = (cls(**config) for cls in PAIRS[kind])
    weight = torch.randn((3, 3, 3, 3), generator=torch.Generator().manual_seed(1)) * 0.1
    options = {"eta": 0.5} if kind else {}
    ends = []
    for scheduler in (original, fast):
        scheduler.set_timesteps(steps)
        generator = torch.Generator().manual_seed(7)
        x = torch.randn(SHAPE, generator=generator)
        for t in scheduler.timesteps:
            m = torch.tanh(torch.nn.functional.conv2d(x, weight, padding=1) + t / 1000)
            x = scheduler.step(m, t, x, generator=generator, return_dict=False, **options)[0]
        ends.append((x, generator.get_state()))
    (expected, theirs), (got, ours) = ends
    assert ours.equal(theirs)
    assert (got - expected).abs().max() <= CHAIN * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_dtypes(kind, dtype):
    """Drawn in the model's dtype and returned in the dtype of the inputs; float32 in between."""
    original, fast = (cls() for cls in PAIRS[kind])
    x, m = torch.randn(2, *SHAPE).to(dtype)
    # diffusers rounds every intermediate to the dtype, x0 at t = 500 among them.
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 5e-2, torch.float64: STEP}[dtype]
    for scheduler in (original, fast):
        scheduler.set_timesteps(10)
    options = {"eta": 1.0} if kind else {}
    for t in original.timesteps:
        hold_step(original, fast, t, m, x, tolerance, **options)
        hold_step(original, fast, t, m.float(), x, tolerance, **options)
    hold_step(
        original, fast, original.timesteps[3], m, x.transpose(2, 3).contiguous().transpose(2, 3), tolerance
    )


@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_inside_diffusers_own_pipeline(kind):
    from test_dropin_diffusers import make_unet, quiet

    cls = (diffusers.DDPMPipeline, diffusers.DDIMPipeline)[kind]
    pipeline = quiet(cls(make_unet(), PAIRS[kind][0]()))
    torch.manual_seed(0)
    expected = pipeline(2, num_inference_steps=10, output_type="np").images
    pipeline.scheduler = fastddpm.optimize(pipeline.scheduler)
    torch.manual_seed(0)
    got = pipeline(2, num_inference_steps=10, output_type="np").images
    assert 2 * abs(got - expected).max() <= CHAIN
    assert pipeline.config["scheduler"] == ("diffusers", PAIRS[kind][0].__name__)


@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_training_script_calls(kind):
    original, fast = (cls(prediction_type="v_prediction") for cls in PAIRS[kind])
    x, noise = torch.randn(2, *SHAPE)
    t = torch.tensor([3, 997])
    assert fast.add_noise(x, noise, t).equal(original.add_noise(x, noise, t))
    assert fast.get_velocity(x, noise, t).equal(original.get_velocity(x, noise, t))
    assert fast.scale_model_input(x, 3) is x
    assert (len(fast), fast.order, fast.init_noise_sigma) == (1000, 1, 1.0)
    assert fast.config.prediction_type == "v_prediction"
    assert isinstance(fast, PAIRS[kind][0])
    assert (
        inspect.signature(fast.step).parameters.keys() == inspect.signature(original.step).parameters.keys()
    )


@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_gradients_flow_as_in_the_original(kind):
    original, fast = (cls(clip_sample=False) for cls in PAIRS[kind])
    for scheduler in (original, fast):
        scheduler.set_timesteps(10)
    x, m = torch.randn(2, *SHAPE)
    gradients = []
    for scheduler in (original, fast):
        leaf = m.clone().requires_grad_()
        out = scheduler.step(leaf, 500, x, generator=torch.Generator().manual_seed(0))
        (out.prev_sample.sum() + out.pred_original_sample.sum()).backward()
        gradients.append(leaf.grad)
    assert gradients[0].equal(gradients[1])


@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_it_is_our_step(kind, monkeypatch):
    original, cls = PAIRS[kind]
    fast = cls()
    fast.set_timesteps(10)

    def forbidden(*args, **kwargs):
        raise AssertionError("the original's step ran")

    monkeypatch.setattr(original, "step", forbidden)
    calls = []
    step = rows_module.reverse_step
    monkeypatch.setattr(rows_module, "reverse_step", lambda *a, **k: (calls.append(1), step(*a, **k)))
    x = torch.randn(SHAPE)
    for t in fast.timesteps:
        fast.step(x, t, x)
    assert len(calls) == 10


@pytest.mark.parametrize("kind", range(2), ids=["ddpm", "ddim"])
def test_saved_under_the_originals_name(kind, tmp_path):
    original, cls = PAIRS[kind]
    fast = cls(beta_end=0.013, timestep_spacing="trailing")
    fast.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert written["_class_name"] == original.__name__
    again = original.from_pretrained(tmp_path)
    assert type(again) is original
    assert again.betas.equal(fast.betas)
    assert type(cls.from_pretrained(tmp_path)) is cls
    other = cls.from_config(PAIRS[1 - kind][0](beta_end=0.013).config)
    assert other.betas.equal(fast.betas)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert type(copied) is cls
        assert copied.config == fast.config
        copied.set_timesteps(4)
        copied.step(torch.zeros(SHAPE), int(copied.timesteps[0]), torch.zeros(SHAPE))
    assert repr(fast).startswith(cls.public_name)


def test_a_whole_pipeline_is_saved_for_anyone(tmp_path):
    from test_dropin_diffusers import make_unet

    diffusers.DDPMPipeline(make_unet(), FastDDPMScheduler(variance_type="fixed_large")).save_pretrained(
        tmp_path
    )
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert type(again.scheduler) is diffusers.DDPMScheduler
    assert again.scheduler.config.variance_type == "fixed_large"


def test_optimize_keeps_the_state_and_the_original():
    original = diffusers.DDIMScheduler()
    original.alphas_cumprod = torch.linspace(0.99, 0.02, 1000)
    original.set_timesteps(20)
    before = {name: repr(value) for name, value in vars(original).items()}
    fast = fastddpm.optimize(original)
    assert type(fast) is FastDDIMScheduler
    x, m = torch.randn(2, *SHAPE)
    hold_step(original, fast, original.timesteps[4], m, x, eta=0.5)
    fast.set_timesteps(7)
    assert {name: repr(value) for name, value in vars(original).items()} == before
    assert fast.original is original
    assert "reverse_step" in str(fast.report())
    Renamed = type("Mine", (diffusers.DDPMScheduler,), {"__module__": "my_project"})
    assert type(fastddpm.optimize(Renamed())) is FastDDPMScheduler


def test_optimize_options():
    meant = diffusers.DDPMScheduler(variance_type="fixed_large")
    fast = fastddpm.optimize(
        diffusers.DDPMScheduler(variance_type="fixed_large_log"), variance_type="fixed_large"
    )
    meant.set_timesteps(10)
    fast.set_timesteps(10)
    x, m = torch.randn(2, *SHAPE)
    hold_step(meant, fast, 500, m, x)

    spaced = diffusers.DDIMScheduler(timestep_spacing="linspace", clip_sample=False)
    spaced.set_timesteps(50)
    fast = fastddpm.optimize(spaced, previous_timestep="consistent")
    visited = spaced.timesteps.tolist()
    t, s = next((t, s) for t, s in itertools.pairwise(visited) if t - s != 20)
    # Song et al. 2021, equation 12, from t to the next timestep of the list.
    abar, prev = spaced.alphas_cumprod[[t, s]].double()
    x0 = (x - (1 - abar) ** 0.5 * m) / abar**0.5
    got = fast.step(m, t, x).prev_sample
    expected = prev**0.5 * x0 + (1 - prev) ** 0.5 * m
    assert (got - expected).abs().max() <= STEP * expected.abs().max()
    assert (got - spaced.step(m, t, x).prev_sample).abs().max() > 1e-4

    for options, message in (
        ({"noise": "philox"}, "noise: 'philox' for a scheduler alone given"),
        ({"engine": "compile"}, "engine: 'compile' for a scheduler alone given"),
        ({"dtype": torch.float16}, "dtype"),
        ({"eta": 0.5}, "eta: unknown to this drop-in, given"),
    ):
        with pytest.raises(ValueError, match=message):
            fastddpm.optimize(diffusers.DDIMScheduler(), **options)
    with pytest.raises(ValueError, match="NaN"):
        fastddpm.optimize(diffusers.DDPMScheduler(variance_type="fixed_large_log"))


def test_refused():
    x = torch.randn(SHAPE)
    with pytest.raises(ValueError, match="set_timesteps first"):
        FastDDIMScheduler().step(x, 3, x)
    fast = FastDDPMScheduler()
    fast.set_timesteps(10)
    with pytest.raises(ValueError, match="timestep: 7 given"):
        fast.step(x, 7, x)
    with pytest.raises(ValueError, match="6 channels for a sample of 3 given"):
        fast.step(torch.cat([x, x], 1), 500, x)
    with pytest.raises(ValueError, match="3 channels for a sample of 3 given, 6 with"):
        FastDDPMScheduler(variance_type="learned_range").step(x, 500, x)
    with pytest.raises(ValueError, match="NaN"):
        FastDDPMScheduler(variance_type="fixed_large_log").step(x, 500, x)
    with pytest.raises(ValueError, match="generator: 3 for 4 images given"):
        fast.step(x[:1].expand(4, -1, -1, -1), 500, x[:1].expand(4, -1, -1, -1), [torch.Generator()] * 3)


def test_what_changes_is_seen():
    """Other timesteps, another configuration, another eta: never the rows of before."""
    original, fast = diffusers.DDIMScheduler(), FastDDIMScheduler()
    x, m = torch.randn(2, *SHAPE)
    for steps in (10, 25):
        for scheduler in (original, fast):
            scheduler.set_timesteps(steps)
        for eta in (0.0, 0.5):
            hold_step(original, fast, 600, m, x, eta=eta)
    for scheduler in (original, fast):
        scheduler.register_to_config(clip_sample_range=0.3)
    hold_step(original, fast, 600, m, x)
    for scheduler in (original, fast):
        scheduler.timesteps = torch.tensor([400, 800, 400])
    for t in original.timesteps:
        hold_step(original, fast, t, m, x)
    ddpm = FastDDPMScheduler()
    ddpm.set_timesteps(timesteps=[800, 300, 10])
    other = diffusers.DDPMScheduler()
    other.set_timesteps(timesteps=[800, 300, 10])
    for t in other.timesteps:
        hold_step(other, ddpm, t, m, x)


@pytest.mark.parametrize("where", ["number", "element", "elsewhere"])
@pytest.mark.parametrize("kind", [FastDDPMScheduler, FastDDIMScheduler, FastDDIMInverseScheduler])
def test_a_step_on_a_gpu_reads_nothing(kind, where, monkeypatch):
    """On fake CUDA tensors, where a read raises: one kernel, and a look-up for an unknown GPU timestep."""
    is_ddim = kind is FastDDIMScheduler
    options = {"eta": 0.5} if is_ddim else {}
    fast = kind(thresholding=True) if is_ddim else kind()
    fast.set_timesteps(10)
    fast.step(torch.zeros(SHAPE), 500, torch.zeros(SHAPE), **options)
    (rows,) = fast._rows.values()
    made = [(t.shape, t.dtype) for t in rows.tensors(torch.device("cpu"))]
    monkeypatch.setattr(rows_module, "current", lambda device: torch.no_grad())
    with pretended(TARGETS["sm_90"]), FakeTensorMode(), torch.no_grad():
        x, m = torch.empty((2, *SHAPE), device="cuda").unbind()
        rows._tensors[x.device] = tuple(torch.empty(s, dtype=d, device="cuda") for s, d in made)
        rows.timesteps = torch.empty(10, dtype=torch.int64, device="cuda")
        far = torch.empty((), dtype=torch.int64, device="cuda")
        t = {"number": 500, "element": rows.timesteps[4], "elsewhere": far}[where]
        with Devices() as devices:
            out = fast.step(m, t, x, **options)
    assert devices.strays == []
    assert devices.operators.count("fastddpm::reverse_step") == 1
    # The bound of thresholding reads its row too.
    assert devices.operators.count("aten::index_select") == 2 * (where == "elsewhere") + is_ddim
    assert out.prev_sample.device.type == "cuda"


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler"])
def test_a_row_that_is_not_finite_keeps_no_other_from_being_taken(name):
    """Betas up to 2, as in diffusers' own tests: in float32 alphas_cumprod is 0 at timestep 400."""
    original = getattr(diffusers, name)(num_train_timesteps=1000, beta_start=0.1, beta_end=2.0)
    original.set_timesteps(10)
    fast = fastddpm.optimize(original)
    x, m = torch.randn(2, *SHAPE)
    for t in original.timesteps.tolist():
        with_seed = [{"generator": torch.Generator().manual_seed(t)} for _ in range(2)]
        expected = original.step(m, t, x, **with_seed[0])
        assert expected.prev_sample.isfinite().all() == (t <= 300)
        out = fast.step(m, t, x, **with_seed[1])
        for key in ("prev_sample", "pred_original_sample"):
            assert out[key].allclose(expected[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("draws_at", [(500, True), (0, False)])
def test_a_timestep_on_a_device_finds_its_row(draws_at, monkeypatch):
    """The look-ups of a GPU timestep, on the CPU: by place, by value, and NaN for what has no row."""
    fast = FastDDPMScheduler()
    fast.set_timesteps(10)
    x, m = torch.randn(2, *SHAPE)
    timestep, draws = draws_at
    expected = fast.step(m, timestep, x, generator=torch.Generator().manual_seed(3)).prev_sample
    monkeypatch.setattr(rows_module, "is_on_device", torch.is_tensor)
    place = fast.timesteps.tolist().index(timestep)
    for t in (fast.timesteps[place], torch.tensor(timestep), torch.tensor([timestep])):
        generator = torch.Generator().manual_seed(3)
        state = generator.get_state()
        assert fast.step(m, t, x, generator=generator).prev_sample.equal(expected)
        # Drawn as the original does, but for a timestep that is in no list: there it draws at t = 0 too.
        is_element = t.untyped_storage().data_ptr() == fast.timesteps.untyped_storage().data_ptr()
        assert generator.get_state().equal(state) is (is_element and not draws)
    for unknown in (7, 5000, -1):
        assert fast.step(m, torch.tensor(unknown), x).prev_sample.isnan().all()
    with pytest.raises(ValueError, match="one timestep accepted"):
        fast.step(m, torch.tensor([500, 400]), x)

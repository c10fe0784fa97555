"""Schedulers of diffusers in folders: repeated, read for their betas, or refused with what to pass."""

from __future__ import annotations

import inspect
import json
import resource
import sys

import numpy as np
import pytest
import torch
from tolerances import DROP_IN

from fastddpm import CheckpointError, NoiseSchedule, load, save_folder
from fastddpm.formats.writing import save_pipeline
from fastddpm.plans.diffusers.solver_classes import SOLVERS

diffusers = pytest.importorskip("diffusers")

# NumPy's, of how diffusers makes arrays of tensors: tens of thousands, each of which a worker would hand on.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
ACCEPTED = "DDPM, DDIM or a solver of fastddpm.plans.diffusers.SOLVERS accepted"


def network(**options):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(**{**TINY, **options}).eval()


def saved(folder, scheduler, **options):
    made = diffusers.DDPMPipeline(network(**options), scheduler)
    made.save_pretrained(folder)
    return made


def edited(folder, **changes):
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, *words, **options):
    """The one line that a folder is refused with, which holds all the words."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, **options)
    message = str(caught.value)
    assert "\n" not in message, message
    assert len(message.replace(str(folder), ".")) < 300, message
    for word in words:
        assert word in message, message


# ------------------------------------------------------------------ repeated


REPEATED = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "v, zero snr": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "x0, cosine": {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    "scaled betas": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "given betas": {"trained_betas": np.linspace(1e-3, 0.1, 100).tolist(), "num_train_timesteps": 100},
    "orders at the end": {"lower_order_final": False, "euler_at_final": True},
    "solver of another": {"solver_type": "bh2"},
    "no timestep below the clip": {"lambda_min_clipped": -5.1},
    "learned variance": {"variance_type": "learned_range"},
}


@torch.no_grad()
@pytest.mark.parametrize("steps", [7, 20])
@pytest.mark.parametrize("case", REPEATED)
def test_dpm_solver_as_diffusers_own_loop(tmp_path, case, steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(**REPEATED[case])
    made = saved(tmp_path, scheduler, out_channels=6 if case == "learned variance" else 3)
    scheduler.set_timesteps(steps)
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(made.unet(x, t).sample, t, x).prev_sample
    sampler = load(tmp_path)
    assert (sampler.plan.method, len(sampler.plan)) == ("dpmpp_2m", 20)
    sampler = sampler.replace(num_inference_steps=steps)
    assert sampler.plan.timesteps.tolist() == scheduler.timesteps.tolist()
    difference = (sampler.sample(x_T=x_T, progress=False) - x).abs().max()
    assert difference <= DROP_IN * x.abs().max().clamp(min=1)


UNIPC = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "trailing, v": {"prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "order 1": {"solver_order": 1},
    "x0, cosine": {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2"},
    "solver of another": {"solver_type": "midpoint"},
}


@torch.no_grad()
@pytest.mark.parametrize("case", UNIPC)
def test_unipc_as_diffusers_own_loop(tmp_path, case):
    scheduler = diffusers.UniPCMultistepScheduler(beta_start=1e-4, beta_end=0.02, **UNIPC[case])
    made = saved(tmp_path, scheduler)
    scheduler.set_timesteps(20)
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(made.unet(x, t).sample, t, x).prev_sample
    sampler = load(tmp_path)
    assert (sampler.plan.method, len(sampler.plan)) == ("unipc", 20)
    assert sampler.plan.timesteps.tolist() == scheduler.timesteps.tolist()
    difference = (sampler.sample(x_T=x_T, progress=False) - x).abs().max()
    assert difference <= DROP_IN * x.abs().max().clamp(min=1)


@pytest.mark.parametrize(
    ("kind", "base"),
    [("DDPMParallelScheduler", "DDPMScheduler"), ("DDIMParallelScheduler", "DDIMScheduler")],
)
def test_parallel_schedulers_take_the_steps_of_the_plain_ones(tmp_path, kind, base):
    options = {"beta_schedule": "scaled_linear", "timestep_spacing": "trailing"}
    scheduler, plain = (getattr(diffusers, name)(**options) for name in (kind, base))
    x, m = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    for one in (scheduler, plain):
        one.set_timesteps(20)
    for t in plain.timesteps[:3]:
        steps = [
            one.step(m, t, x, generator=torch.Generator().manual_seed(4)).prev_sample
            for one in (scheduler, plain)
        ]
        assert torch.equal(*steps)
    saved(tmp_path / "parallel", scheduler)
    saved(tmp_path / "plain", plain)
    assert load(tmp_path / "parallel").options == load(tmp_path / "plain").options


# ------------------------------------------------------------------ their own steps


OWN = [
    ("PNDMScheduler", {}),
    ("PNDMScheduler", {"skip_prk_steps": True}),
    ("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": True, "steps_offset": 1}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
    ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"solver_type": "heun"}),
    ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min"}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    ("DPMSolverMultistepScheduler", {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"}),
    ("DPMSolverMultistepScheduler", {"thresholding": True}),
    ("DPMSolverMultistepScheduler", {"steps_offset": 1, "timestep_spacing": "leading"}),
    ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    ("DEISMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}),
    ("UniPCMultistepScheduler", {"disable_corrector": [0]}),
    ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ("SASolverScheduler", {}),
    ("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear"}),
    ("EulerDiscreteScheduler", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {"use_karras_sigmas": True}),
    ("LMSDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("KDPM2AncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("EDMEulerScheduler", {}),
    (
        "EDMEulerScheduler",
        {"prediction_type": "v_prediction", "sigma_data": 1.0, "final_sigmas_type": "sigma_min"},
    ),
    ("EDMDPMSolverMultistepScheduler", {"thresholding": True}),
    (
        "EDMDPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "sigma_schedule": "exponential"},
    ),
    ("DDPMScheduler", {"thresholding": True, "sample_max_value": 2.0}),
    ("DDPMScheduler", {"steps_offset": 1}),
    ("DDIMScheduler", {"set_alpha_to_one": False}),
    ("DDIMScheduler", {"clip_sample": False, "steps_offset": 1, "set_alpha_to_one": False}),
]
EIGHT = 8


@torch.no_grad()
def their_images(scheduler, unet, x_T):
    """The loop that a pipeline of diffusers has, from x_T as our chains have it."""
    scheduler.set_timesteps(EIGHT)
    generator = torch.Generator().manual_seed(5)
    x = x_T
    if type(scheduler).__name__.startswith(
        ("Euler", "Heun", "LMS", "KDPM2", "EDM")
    ):  # their state is x/alpha
        x = x_T * (float(scheduler.sigmas[0]) ** 2 + scheduler.config.get("sigma_data", 1.0) ** 2) ** 0.5
    draws = "generator" in inspect.signature(scheduler.step).parameters
    for t in scheduler.timesteps:
        m = unet(scheduler.scale_model_input(x, t), t).sample
        x = scheduler.step(m, t, x, **({"generator": generator} if draws else {})).prev_sample
    return x


@pytest.mark.filterwarnings("ignore::UserWarning")  # `leading` starts late, as it was asked for
@pytest.mark.parametrize(("name", "options"), OWN, ids=lambda one: str(one))
def test_a_schedulers_own_steps(tmp_path, name, options):
    scheduler = getattr(diffusers, name)(**options)
    made = saved(tmp_path, scheduler)
    x_T = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    x = their_images(scheduler, made.unet, x_T)
    sampler = load(tmp_path, num_inference_steps=EIGHT)
    assert (sampler.method.method, sampler.plan.method) == ("diffusers", "diffusers")
    images = sampler.sample(
        x_T=x_T, noise="torch", generator=torch.Generator().manual_seed(5), progress=False
    )
    assert (images - x).abs().max() <= DROP_IN * x.abs().max().clamp(min=1)


def test_their_own_options_go_with_a_model(tmp_path):
    """Through a folder of ours and a pipeline written again; another method takes its place."""
    theirs = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "use_karras_sigmas": True}
    saved(tmp_path / "theirs", diffusers.EulerDiscreteScheduler(**theirs))
    sampler = load(tmp_path / "theirs", num_inference_steps=6)
    save_folder(tmp_path / "ours", sampler.model, sampler.schedule, sampler.replace(device=None).options)
    again = load(tmp_path / "ours")
    assert again.method == sampler.method
    assert np.array_equal(again.plan.table, sampler.plan.table)
    save_pipeline(tmp_path / "again", sampler.model, sampler.schedule, sampler.options)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path / "again")
    kept = diffusers.EulerDiscreteScheduler.from_pretrained(tmp_path / "again" / "scheduler")
    assert type(pipeline.scheduler) is type(kept)
    assert {name: kept.config[name] for name in theirs} == theirs
    other = sampler.replace(**sampler.method.adapted(method="ddim", num_inference_steps=5).to_dict())
    assert (other.plan.method, other.plan.prediction_type, len(other.plan)) == ("ddim", "v_prediction", 5)
    for changed in (
        load(tmp_path / "ours", method="ddim", num_inference_steps=5),
        again.replace(method="ddim", num_inference_steps=5),
    ):
        assert changed.method == other.method
    back = other.replace(eta=0.5).replace(method="diffusers", scheduler=diffusers.LMSDiscreteScheduler())
    assert (back.method.fields["_class_name"], len(back.plan)) == ("LMSDiscreteScheduler", 5)
    with pytest.raises(ValueError, match=r"timestep_spacing: 'trailing' with method 'diffusers'"):
        load(tmp_path / "theirs", timestep_spacing="trailing")


@pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])
def test_a_preconditioned_network(tmp_path, sigma_schedule):
    """Its schedule has the scheduler's levels; it goes with its scheduler and with no other method."""
    theirs = {"sigma_max": 40.0, "num_train_timesteps": 200, "sigma_schedule": sigma_schedule}
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(**theirs)
    saved(tmp_path / "theirs", scheduler)
    sampler = load(tmp_path / "theirs")
    assert (sampler.plan.method, len(sampler.plan), len(sampler.schedule)) == ("diffusers", 20, 200)
    abar = sampler.schedule.alphas_cumprod
    sigmas = scheduler.sigmas[:-1].double().numpy()[::-1]
    assert np.sqrt((1 - abar) / abar) * 0.5 == pytest.approx(sigmas, rel=1e-4)
    save_folder(tmp_path / "ours", sampler.model, sampler.schedule, sampler.replace(device=None).options)
    again = load(tmp_path / "ours")
    assert np.array_equal(again.plan.table, sampler.plan.table)
    assert np.array_equal(again.plan.model_time, sampler.plan.model_time)
    save_pipeline(tmp_path / "again", sampler.model, sampler.schedule, sampler.options)
    kept = diffusers.EDMDPMSolverMultistepScheduler.from_pretrained(tmp_path / "again" / "scheduler")
    assert {name: kept.config[name] for name in theirs} == theirs
    refused(tmp_path / "theirs", "told no timesteps; method='diffusers' accepted", method="ddim")
    with pytest.raises(ValueError, match="method: 'ddim' for a network of EDMDPMSolverMultistepScheduler"):
        sampler.method.adapted(method="ddim")
    with pytest.raises(ValueError, match="method: 'ddim' for a network of EDMDPMSolverMultistepScheduler"):
        load(tmp_path / "ours", method="ddim")


@pytest.mark.parametrize(
    ("field", "value"),
    [("sigma_min", 0.0), ("sigma_max", 0.001), ("sigma_data", "x"), ("rho", None), ("sigma_schedule", "x")],
)
def test_wrong_fields_of_preconditioned_networks(tmp_path, field, value):
    saved(tmp_path, diffusers.EDMEulerScheduler())
    edited(tmp_path, **{field: value})
    refused(tmp_path, f"scheduler: {field}: ")


def test_what_has_no_rows(tmp_path):
    saved(tmp_path, diffusers.DPMSolverSinglestepScheduler(algorithm_type="sde-dpmsolver++", solver_order=3))
    refused(tmp_path, "solver_order: 3 with an algorithm with noise", 'method="ddim"')
    assert load(tmp_path, method="ddim").plan.method == "ddim"
    other = {"algorithm_type": "dpmsolver++"}
    assert load(tmp_path, config={"scheduler": other}).plan.method == "diffusers"


@pytest.mark.parametrize("name", ["solver_order", "lambda_min_clipped", "original_inference_steps"])
@pytest.mark.parametrize("value", [10**12, "x" * 100, {"a": 1}, [[1]], [1] * 100])
def test_wrong_fields_of_solvers(tmp_path, name, value):
    kind = "LCMScheduler" if name.startswith("original") else "DEISMultistepScheduler"
    saved(tmp_path, getattr(diffusers, kind)())
    edited(tmp_path, **{name: value})
    refused(tmp_path, f"scheduler: {name}: ")


def test_no_diffusers_for_its_schedulers(tmp_path, monkeypatch):
    saved(tmp_path, diffusers.LMSDiscreteScheduler())
    monkeypatch.setitem(sys.modules, "diffusers", None)
    refused(tmp_path, "without diffusers given, pip install 'fastddpm[diffusers]' accepted", 'method="ddim"')


# ------------------------------------------------------------------ refused, with what to pass


@pytest.mark.parametrize(
    ("options", "neutral"),
    [({"thresholding": True}, False), ({"steps_offset": 1, "timestep_spacing": "leading"}, 0)],
)
def test_what_no_method_has(tmp_path, options, neutral):
    saved(tmp_path, diffusers.DPMSolverMultistepScheduler(**options))
    name = next(iter(options))
    refused(tmp_path, f"scheduler: {name}=", f'"{name}": {neutral}', method="dpmpp_2m")
    assert load(tmp_path, config={"scheduler": {name: neutral}}).plan.method == "dpmpp_2m"


def every_other_scheduler():
    for name in sorted(vars(diffusers.schedulers).get("__all__", dir(diffusers.schedulers))):
        kind = getattr(diffusers.schedulers, name, None)
        known = ("DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", *SOLVERS)
        if not name.endswith("Scheduler") or name in known:
            continue
        if inspect.isclass(kind) and issubclass(kind, diffusers.SchedulerMixin):
            yield name


OTHERS = list(every_other_scheduler())


def test_there_are_many_others():
    assert len(OTHERS) > 20


@pytest.mark.parametrize("name", OTHERS)
def test_every_other_scheduler(tmp_path, name):
    """Refused; with method= read for its betas, which are the scheduler's own, where it has any."""
    try:
        scheduler = getattr(diffusers.schedulers, name)()
    except Exception as error:  # one that has no defaults, or wants a package that is not here
        pytest.skip(f"{type(error).__name__}: {error}")
    saved(tmp_path, diffusers.DDPMScheduler())
    scheduler.save_pretrained(tmp_path / "scheduler")
    refused(tmp_path, f"scheduler: _class_name='{name}' given", ACCEPTED)
    has_betas = "beta_schedule" in scheduler.config
    if not has_betas or "snr_shift_scale" in scheduler.config:
        refused(tmp_path, "no betas" if not has_betas else "another process than a DDPM's", method="ddim")
        return
    refused(tmp_path, 'method="ddim"', '{"_class_name": "DDIMScheduler"}')
    neutral = {"steps_offset": 0, "set_alpha_to_one": True}
    sampler = load(tmp_path, method="ddim", config={"scheduler": neutral})
    assert (sampler.plan.method, len(sampler.plan)) == ("ddim", 50)
    expected = scheduler.alphas_cumprod.double().numpy()
    assert abs(sampler.schedule.alphas_cumprod - expected).max() <= 1e-6
    converted = load(tmp_path, config={"scheduler": {**neutral, "_class_name": "DDIMScheduler"}})
    assert converted.options == sampler.options


def test_methods_that_take_a_schedulers_place(tmp_path):
    saved(tmp_path, diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", num_train_timesteps=200))
    assert load(tmp_path, method="ddpm").options["clip_sample_range"] == 1.0
    solver = load(tmp_path, method="dpmpp_2m")
    assert (len(solver.plan), solver.options["clip_sample_range"]) == (20, None)
    assert solver.schedule == NoiseSchedule.scaled_linear(200)
    edited(tmp_path, timestep_type="continuous")
    refused(tmp_path, "timestep_type='continuous', another process", method="ddim")


def test_none_is_the_variance_of_ddpm(tmp_path):
    """Which DDPMScheduler computes for variance_type None, what a solver's configuration has."""
    saved(tmp_path, diffusers.DPMSolverMultistepScheduler())
    sampler = load(tmp_path, config={"scheduler": {"_class_name": "DDPMScheduler"}})
    assert (sampler.plan.method, sampler.options["variance_type"]) == ("ddpm", "fixed_small")
    theirs = diffusers.DDPMScheduler(variance_type=None)
    expected = [float(theirs._get_variance(t)) for t in (1, 500, 999)]
    assert np.allclose(sampler.schedule.posterior_variance[[1, 500, 999]], expected, rtol=1e-4)


def test_what_a_solvers_configuration_leaves_out(tmp_path):
    saved(tmp_path, diffusers.DDPMScheduler())
    sampler = load(tmp_path, config={"scheduler": {"_class_name": "DPMSolverMultistepScheduler"}})
    assert sampler.options["timestep_spacing"] == "leading"  # of DDPM's, which says it
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "DPMSolverMultistepScheduler"}))
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("DDPMScheduler", "DPMSolverMultistepScheduler"))
    scheduler = diffusers.DPMSolverMultistepScheduler()
    scheduler.set_timesteps(20)
    assert load(tmp_path).plan.timesteps.tolist() == scheduler.timesteps.tolist()


def test_few_training_timesteps(tmp_path):
    saved(tmp_path, diffusers.DPMSolverMultistepScheduler(num_train_timesteps=10))
    assert len(load(tmp_path).plan) == 10


# ------------------------------------------------------------------ wrong configurations


WRONG = [
    ("num_train_timesteps", 1e10),
    ("num_train_timesteps", 10**10),
    ("num_train_timesteps", 0),
    ("num_train_timesteps", None),
    ("trained_betas", "x"),
    ("trained_betas", [0.1, "x"]),
    ("trained_betas", [[0.1]]),
    ("trained_betas", [0.1] * 5),
    ("beta_start", "x"),
    ("beta_end", 2.0),
    ("beta_schedule", "x" * 5000),
    ("clip_sample", "yes"),
    ("clip_sample_range", None),
    ("clip_sample_range", -1),
    ("prediction_type", 3),
    ("variance_type", ["fixed_small"]),
    ("timestep_spacing", None),
    ("steps_offset", 0.5),
    ("thresholding", "no"),
    ("rescale_betas_zero_snr", 1),
    ("_class_name", ["DDPMScheduler"]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_scheduler_is_refused_before_anything_is_made(tmp_path, monkeypatch, name, value):
    saved(tmp_path, diffusers.DDPMScheduler())
    edited(tmp_path, **{name: value})
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    monkeypatch.setattr("fastddpm.formats.diffusers.build", lambda *_: pytest.fail("built"))
    monkeypatch.setattr(torch, "linspace", lambda *_, **__: pytest.fail("allocated"))
    refused(tmp_path, f"scheduler: {name}")


@pytest.mark.parametrize("name", ["sigmoid", "laplace", "linear"])
def test_too_many_timesteps_for_every_schedule(tmp_path, name):
    saved(tmp_path, diffusers.DDPMScheduler())
    edited(tmp_path, beta_schedule=name, num_train_timesteps=10**10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path, "scheduler: num_train_timesteps: 10000000000 given")
    if sys.platform == "linux":
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB

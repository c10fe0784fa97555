"""`fastddpm.optimize` itself: what it recognises, refuses and passes on, whatever the library."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

import fastddpm
from fastddpm.dropin import PEERS, Report, Settings, Unrecognised
from fastddpm.engine import Loops
from fastddpm_bench.peers import abarankab as peers_abarankab
from fastddpm_bench.peers import sr3 as peers_sr3
from fastddpm_bench.peers import trajectories as peers_trajectories


class Hostile:
    """Raises whatever is asked of it."""

    def __getattr__(self, name):
        raise RuntimeError(name)


class Everything:
    """Has every attribute, of no use."""

    def __getattr__(self, name):
        return 1


STRANGERS = {
    "nothing": None,
    "number": 3,
    "text": "DDPMPipeline",
    "object": object(),
    "dictionary": {"model": 1},
    "namespace": types.SimpleNamespace(model=1, scheduler=2),
    "module": nn.Linear(2, 2),
    "function": lambda x, t: x,
    "class": fastddpm.UNet,
    "hostile": Hostile(),
    "everything": Everything(),
}


@pytest.fixture(params=PEERS)
def peer(request):
    return importlib.import_module(f"fastddpm.dropin.{request.param}")


def test_every_peer_has_the_protocol(peer):
    assert isinstance(peer.DESCRIPTION, str)
    assert peer.DESCRIPTION
    assert callable(peer.build)
    for name, stranger in STRANGERS.items():
        assert peer.recognises(stranger) is False, name


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_refused_with_what_is_known(name):
    with pytest.raises(Unrecognised) as refused:
        fastddpm.optimize(STRANGERS[name])
    message = str(refused.value)
    assert message.startswith(f"obj: {type(STRANGERS[name]).__name__} given")
    for module in PEERS:
        assert importlib.import_module(f"fastddpm.dropin.{module}").DESCRIPTION in message
    assert "schedule=" in message
    assert "fastddpm.Sampler(model, fastddpm.NoiseSchedule.linear(1000))" in message


def test_recognising_imports_no_peer():
    code = (
        "import sys, json, fastddpm\n"
        "try: fastddpm.optimize(object())\n"
        "except fastddpm.dropin.Unrecognised: pass\n"
        "print(json.dumps([m for m in ('diffusers', 'denoising_diffusion_pytorch', 'transformers')"
        " if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == []


def test_objects_are_recognised_by_one_peer_alone():
    betas = peers_abarankab.linear_betas(10)
    objects = {
        "abarankab": peers_abarankab.Diffusion(peers_abarankab.Network(1, 4), (4, 4), 1, betas),
        "sr3": peers_sr3.Diffusion(peers_sr3.Network("sr3", 2, 1, 4, norm_groups=2), 4, 1),
    }
    objects["sr3"].set_betas(betas)
    network = peers_trajectories.TemporalUnet(8, 5, 3, dim=8, dim_mults=(1, 2))
    objects["trajectories"] = peers_trajectories.Diffusion(network, 8, 3, 2, n_timesteps=4)
    for owner, obj in objects.items():
        modules = [
            name for name in PEERS if importlib.import_module(f"fastddpm.dropin.{name}").recognises(obj)
        ]
        assert modules == [owner]


def test_a_callable_with_a_schedule_becomes_a_sampler():
    def model(x, t):
        return 0.1 * x * t[:, None, None, None] / 1000

    schedule = fastddpm.NoiseSchedule.linear(30)
    sampler = fastddpm.optimize(
        model, schedule=schedule, engine="eager", method="ddim", num_inference_steps=4
    )
    assert isinstance(sampler, fastddpm.Sampler)
    assert sampler.engine == "eager"
    assert len(sampler.plan) == 4
    assert sampler.model is model
    images = sampler.sample(seeds=[1, 2], shape=(1, 4, 4), progress=False)
    direct = fastddpm.Sampler(model, schedule, method="ddim", num_inference_steps=4)
    assert torch.equal(images, direct.sample(seeds=[1, 2], shape=(1, 4, 4), progress=False))
    with pytest.raises(Unrecognised):
        fastddpm.optimize(fastddpm.UNet, schedule=schedule)
    with pytest.raises(Unrecognised):
        fastddpm.optimize(3, schedule=schedule)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "randn"}, "noise: 'randn' given, one of torch, philox accepted"),
        (
            {"engine": "fast"},
            "engine: 'fast' given, one of auto, eager, .* onnxruntime accepted",
        ),
        ({"dtype": torch.float64}, "dtype: torch.float64 given, None, float32, float16 or bfloat16 accepted"),
        ({"dtype": "bfloat16"}, "dtype: 'bfloat16' given"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fastddpm.optimize(object(), **options)
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_an_engine_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has the engines")
    diffusion = peers_abarankab.Diffusion(
        peers_abarankab.Network(1, 4), (4, 4), 1, peers_abarankab.linear_betas(9)
    )
    with pytest.raises(fastddpm.EngineUnavailable, match="cudagraph"):
        fastddpm.optimize(diffusion.eval(), engine="cudagraph")


def test_an_option_that_a_peer_has_not_is_named():
    diffusion = peers_abarankab.Diffusion(
        peers_abarankab.Network(1, 4), (4, 4), 1, peers_abarankab.linear_betas(9)
    )
    with pytest.raises(TypeError, match="steps"):
        fastddpm.optimize(diffusion.eval(), steps=3)


def test_a_report_is_text():
    report = Report(
        "a library",
        "a network",
        "eager",
        "torch",
        "float32",
        ("clip", "noise"),
        ("cond_fn: needs gradients",),
    )
    assert str(report).splitlines() == [
        "a library",
        "  network   a network",
        "  engine    eager",
        "  noise     torch",
        "  precision float32",
        "  fused     clip, noise",
        "  not fused cond_fn: needs gradients",
    ]
    assert "fused     nothing" in str(Report("a", "b", "c", "d"))


def test_auto_says_what_another_engine_would_give(unet):
    """Nothing is compiled or handed over that was not asked for."""
    runner = Settings().runner(unet, capacity=10)
    assert runner.engine_in_words().startswith("eager, chosen by auto; engine='onnxruntime' has ONNX Runtime")
    half = Settings().runner(unet, capacity=10, dtype=torch.bfloat16)
    assert half.engine_in_words() == "eager"
    runner.loops = Loops("cudagraph")
    assert "engine='compile' has fewer launches" in runner.engine_in_words()
    asked = Settings(engine="eager").runner(unet, capacity=10)
    assert asked.engine_in_words() == "eager"

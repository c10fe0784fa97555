"""Policies as files: observations and seeds in, actions out, without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from onnx import load as load_onnx
from tolerances import DROP_IN

import fastddpm
from fastddpm.onnx import OnnxSampler
from fastddpm.randomness import PhiloxNoise
from fastddpm_bench.peers import diffusion_policy as peers
from fastddpm_bench.peers import policy_unets

OPTIONS = {"beta_schedule": "squaredcos_cap_v2", "clip_sample": True, "prediction_type": "epsilon"}
SEEDS = [3, 2**40 + 1]


def policy(kind):
    torch.manual_seed(0)
    network = policy_unets.ConditionalUnet1D(3, None, 8, 12, (16, 24), kernel_size=5, cond_predict_scale=True)
    scheduler = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[kind](100, **OPTIONS)
    return peers.LowdimPolicy(network, scheduler, 16, 4, 3, 2, 100 if kind == "ddpm" else 10).eval()


@pytest.fixture(scope="module", params=["ddpm", "ddim"])
def exported(request, tmp_path_factory):
    """A drop-in, and its export, every file of which was held to PyTorch."""
    fast = fastddpm.optimize(policy(request.param), noise="philox")
    folder = tmp_path_factory.mktemp("policy") / "export"
    fastddpm.export_onnx(fast.sampler(), folder, cond={"global_cond": observed().flatten(1)})
    return fast, folder


def observed():
    return torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(1))


def drawn_by(fast, monkeypatch):
    """The drop-in's actions of these seeds."""
    source = PhiloxNoise(torch.tensor(SEEDS), torch.device("cpu"))
    monkeypatch.setattr(type(fast.conditional_sample.settings), "source", lambda *given, **named: source)
    return fast.predict_action({"obs": observed()})["action_pred"].numpy()


@pytest.mark.parametrize("loop", ["file", "steps"])
def test_files_draw_the_drop_ins_actions(exported, loop, monkeypatch):
    fast, folder = exported
    wanted = drawn_by(fast, monkeypatch)
    given = observed().flatten(1)
    again = fast.sampler().sample(seeds=SEEDS, cond={"global_cond": given}, progress=False).numpy()
    assert np.abs(again - wanted).max() <= DROP_IN
    sampler = OnnxSampler(folder, loop=loop)
    actions = sampler.sample(seeds=SEEDS, cond={"global_cond": given.numpy()}, progress=False)
    assert actions.shape == (2, 16, 3)
    assert wanted.std() > 0.05
    assert np.abs(actions - wanted).max() <= DROP_IN
    other = sampler.sample(seeds=SEEDS, cond={"global_cond": given.numpy() + 1}, progress=False)
    assert np.abs(other - actions).max() > 0.01


def test_what_film_gives_is_computed_outside_of_the_loop(exported):
    graph = load_onnx(exported[1] / "sampler.onnx").graph
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    inside = {node.op_type for node in loop.attribute[0].g.node}
    assert {"Conv", "ConvTranspose"} <= inside
    assert not inside & {"Gemm", "MatMul"}


@pytest.mark.parametrize("passed", [{}, {"eta": 1.0, "use_clipped_model_output": True}])
def test_ddim_that_clips(passed, monkeypatch):
    """Samplers of it take its own steps, or ours where it computes eps anew as these do."""
    peer = policy("ddim")
    peer.kwargs = passed
    fast = fastddpm.optimize(peer, noise="philox")
    wanted = drawn_by(fast, monkeypatch)
    cond = {"global_cond": observed().flatten(1)}
    sampler = fast.sampler()
    assert np.abs(sampler.sample(seeds=SEEDS, cond=cond, progress=False).numpy() - wanted).max() <= DROP_IN
    ours = sampler.replace(method="ddim", scheduler=None, clip_sample_range=1.0)
    differs = np.abs(ours.sample(seeds=SEEDS, cond=cond, progress=False).numpy() - wanted).max()
    assert (differs > 0.01) == (not passed)


def test_what_a_sampler_would_draw_otherwise_is_refused():
    peer = policy("ddim")
    peer.kwargs = {"eta": 0.5}
    with pytest.raises(ValueError, match=r"eta: 0\.5 with a DDIMScheduler that clips given, 0, clip_sample="):
        fastddpm.optimize(peer).sampler()


def test_no_torch_is_needed(exported):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from fastddpm.onnx import OnnxSampler\n"
        f"sampler = OnnxSampler({str(exported[1])!r})\n"
        "cond = {'global_cond': np.zeros((1, 8), dtype=np.float32)}\n"
        "assert sampler.sample(seeds=[5], cond=cond, progress=False).shape == (1, 16, 3)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""Proof j: whole chains on fake CUDA tensors: what is sent to the card while they run, and what is read.

Every upload is from page-locked memory, so that the host waits for none, and nothing comes back before there
is something to hand out. Steps run as engine `eager` has them, or by a backend that repeats what it captured.
"""

from __future__ import annotations

import contextlib
import functools
from typing import ClassVar

import fake_gpu
import pytest
import torch
from host_copies import HostCopies, pretend_streams
from kernel_build import TARGETS, pretended
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

fake_gpu.skip_unless_pinned()

import fastddpm  # noqa: E402
from fastddpm import NoiseSchedule, Sampler, UNet, UNetConfig  # noqa: E402
from fastddpm.engine import executors  # noqa: E402
from fastddpm.restoration.rows import Rows  # noqa: E402
from fastddpm.serving import Scheduler  # noqa: E402
from fastddpm.serving.lane import Lane  # noqa: E402

SHAPE = (3, 8, 8)
CONDITIONED = UNetConfig(in_channels=6, out_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4)


@contextlib.contextmanager
def card():
    """Tensors made here on "cuda" are fake, and so are those of modules moved there."""
    with pretended(TARGETS["sm_90"]), FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        yield torch.device("cuda")


@pytest.fixture
def looks(monkeypatch):
    """The looks at finished images, which are left out: each is one read."""
    seen = []
    pretend_streams(monkeypatch)
    for place in ("configured.check_finite", "serving.workshop.check_finite", "runner.warn_if_not_finite"):
        monkeypatch.setattr(f"fastddpm.{place}", lambda images, *_: seen.append(tuple(images.shape)))
    given = "fastddpm.conditions.check_values"
    monkeypatch.setattr(given, lambda name, values: seen.append(name) if values.is_cuda else None)
    return seen


def held(proof, subject, copies, reads=0, **figures):
    proof("j", subject, uploads=len(copies.sent), pageable=copies.sent.count(False), reads=reads, **figures)
    assert copies.sent
    assert all(copies.sent)


@pytest.mark.parametrize(("method", "kept"), [("ddpm", 0), ("dpmpp_2m", 1)])
def test_large_pictures_by_rows(method, kept, looks, proof):
    """The plan goes there once, whatever the number of tiles; of a row of tiles its condition alone."""
    tile, steps, size = 8, 3, (3, 16, 14)
    with card() as device:
        with device:
            unet = UNet(CONDITIONED).eval()
        options = {"method": method, "num_inference_steps": steps, "shape": (3, tile, tile)}
        plan = Sampler(unet, NoiseSchedule.linear(), **options).plan
        assert plan.kept == kept
        asked = []

        def condition(top, bottom):
            asked.append(top)
            return torch.zeros(1, 3, bottom - top, size[2], device="cpu")

        rows = Rows(unet, plan, torch.zeros(2, dtype=torch.int64, device=device), size, tile, 2, condition)
        done = []
        with HostCopies() as copies:
            bands = list(rows.drawn(done.append))
    assert sum(band.shape[2] for band in bands) == size[1]
    assert all(band.is_cuda for band in bands)
    assert len(asked) == len(done) == steps * len(rows.tops)
    assert len(copies.sent) == len(asked) + 3
    assert copies.operators.count("fastddpm::reverse_step") == len(done)
    held(proof, f"large pictures by rows, {method}", copies, tiles=3 * len(done))


class Repeating:
    """Captures by running, replays by running again; counts what is captured of steps."""

    captured: ClassVar[list[bool]] = []

    def __init__(self, device):
        pass

    def warm_up(self, run):
        run()

    def capture(self, run):
        type(self).captured.append(not isinstance(run, functools.partial))
        run()
        return run

    def memory(self):
        return 0


def test_requests_in_flight(looks, monkeypatch, proof):
    """One that comes later and is shorter is drawn first; the other is set aside and taken up again."""
    monkeypatch.setattr(executors, "CudaGraphBackend", Repeating)
    monkeypatch.setattr(Repeating, "captured", [])
    monkeypatch.setattr("fastddpm.serving.workshop.threading.Thread.start", lambda thread: None)
    for place in ("workshop", "lanes"):
        monkeypatch.setattr(f"fastddpm.serving.{place}.CAPTURED_STRIDE", 2)
    parked, run, put = [], Lane.run, fastddpm.serving.lane.Parked.put
    monkeypatch.setattr(
        fastddpm.serving.lane.Parked,
        "put",
        lambda self, places, loop: parked.append(len(places)) or put(self, places, loop),
    )
    with card() as device:
        with device:
            unet = UNet(CONDITIONED).eval()
        sampler = Sampler(unet, NoiseSchedule.linear(), num_inference_steps=6, shape=SHAPE)
        assert sampler.runner.engine == "cudagraph"
        scheduler = Scheduler(sampler, max_batch=1)
        given = {"condition": torch.zeros(1, *SHAPE, device=device)}
        drawings = [scheduler.submit(1, **given)]

        def run_and_submit(self, steps):
            run(self, steps)
            if len(drawings) == 1:
                drawings.append(scheduler.submit(2, num_inference_steps=2, **given))

        monkeypatch.setattr(Lane, "run", run_and_submit)
        with HostCopies() as copies:
            scheduler._workshop._work()
    assert [drawing.result(0).is_cuda for drawing in drawings] == [True, True]
    assert sum(parked) == 1
    # One loop, one graph of its steps; what comes before them is captured too.
    assert sum(Repeating.captured) == 1
    assert looks == [(1, *SHAPE)] * 2
    held(proof, "requests in flight, one set aside", copies, graphs=sum(Repeating.captured))


def test_a_policys_chunk(looks, tmp_path, proof):
    """From observations on the host: each of them goes there, and what the chain needs in one parcel.

    What they are encoded into is looked at for NaN before the chain, one read, and the actions after it.
    """
    pytest.importorskip("torchvision")
    from fastddpm_bench.peers import lerobot_policy as peers

    inputs = {"observation.state": ("STATE", (3,)), "observation.image": ("VISUAL", (3, 40, 48))}
    made = peers.DiffusionPolicy(peers.config(inputs, 2, num_inference_steps=2, crop_shape=(33, 35)))
    shapes = {"observation.state": (3,), "observation.image": (3, 1, 1), "action": (2,)}
    statistics = {
        name: {"min": torch.zeros(s), "max": torch.ones(s), "mean": torch.zeros(s), "std": torch.ones(s)}
        for name, s in shapes.items()
    }
    saved = peers.save(made, tmp_path / "policy", statistics)
    policy = fastddpm.load_policy(saved, engine="eager")
    with card() as device:
        policy.sampler.model.to(device)
        policy.sampler = policy.sampler.replace()
        for part in (policy._observations, policy._actions):
            part.to(device)
        seen = {name: torch.zeros(1, 2, *shape, device="cpu") for name, (_, shape) in inputs.items()}
        counts = []
        for _ in range(2):
            with HostCopies() as copies:
                actions = policy.act(seen, seeds=[3])
            assert actions.is_cuda
            counts.append(len(copies.sent))
            held(proof, "a policy's chunk", copies, reads=1)
    assert counts[1] == len(inputs) + 1
    assert looks == ["cond['global_cond']", (1, 16, 2)] * 2


@pytest.mark.parametrize("generator", ["of the host", "none"])
@pytest.mark.parametrize("kind", ["KarrasVe", "ScoreSdeVe"])
def test_exploding_pipelines(kind, generator, looks, monkeypatch, proof):
    """Noise of the host goes by way of page-locked buffers, row by row; the corrector reads no norm."""
    pytest.importorskip("transformers")
    import diffusers
    from latent_pipelines import pixel_unet

    from fastddpm.dropin._diffusers import exploding

    unet, steps = pixel_unet(), 3
    scheduler = getattr(diffusers, f"{kind}Scheduler")()
    fast = fastddpm.optimize(
        getattr(diffusers, f"{kind}Pipeline")(unet, scheduler), engine="eager", network="original"
    )
    # What follows from the scheduler is computed before: its tensors are to be real.
    plan = fast._plan(steps)
    monkeypatch.setattr(fast, "_plan", lambda *_, **options: plan)
    if kind == "KarrasVe":
        first = exploding.first_churn(scheduler, steps)
        monkeypatch.setattr(exploding, "first_churn", lambda *_: first)
    asked = fast._asked((), {"batch_size": 2, "num_inference_steps": steps, "output_type": "np"})
    asked["generator"] = torch.Generator().manual_seed(1) if generator == "of the host" else None
    with card() as device:
        unet.to(device)
        with HostCopies() as copies:
            chain = fast._chain(asked)
            images = fast._last(chain, asked)
    assert images.is_cuda
    held(proof, f"{kind}Pipeline, generator: {generator}", copies)


OFFENCES = {
    "pageable": lambda x: x + torch.ones(1, 1, 1, 1, device="cpu").to(x.device),
    "read": lambda x: x * float(x.sum()),
    "brought back": lambda x: x.cpu().to(x.device),
}


class Offender(torch.nn.Module):
    """A model with one of them."""

    def __init__(self, offence):
        super().__init__()
        self.offence, self.weight = OFFENCES[offence], torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return self.offence(x)


def _all_locked(sampler):
    with HostCopies() as copies:
        sampler.sample(seeds=[1], progress=False)
    assert all(copies.sent)


@pytest.mark.parametrize("offence", OFFENCES)
def test_known_offenders_are_caught(offence, looks, proof):
    caught = AssertionError if offence != "read" else DataDependentOutputException
    with card() as device:
        with device:
            model = Offender(offence)
        options = {"num_inference_steps": 2, "timestep_spacing": "trailing", "shape": SHAPE}
        sampler = Sampler(model, NoiseSchedule.linear(), engine="eager", **options)
        with pytest.raises(caught):
            _all_locked(sampler)
    proof("j", f"offender: {offence}", caught="yes")

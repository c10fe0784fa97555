"""A batch whose samples walk plans of their own, each from its own step on: each image as it is alone."""

from __future__ import annotations

import pytest
import torch
from networks import make_unet
from replay import RecordingBackend
from tolerances import ACROSS_BATCHES

from fastddpm import NoiseSchedule, Sampler
from fastddpm.engine import Loops, StepCase
from fastddpm.network import in_eval_mode, without_grad
from fastddpm.plans.arena import IDLE, Arena
from fastddpm.weights import Inventory

SCHEDULE = NoiseSchedule.linear(100)
SHAPE = (3, 8, 8)
# Method, seed, label, guidance and the step of the batch at which it begins.
CHAINS = [
    ({"method": "ddpm", "num_inference_steps": 9}, 5, 0, 1.0, 0),
    ({"method": "ddim", "num_inference_steps": 4}, 6, 1, 3.0, 2),
    ({"method": "dpmpp_2m", "num_inference_steps": 6}, 7, 2, 0.0, 1),
]
SLOTS = 4  # one rests all along


def sampler_of(unet, chain):
    return Sampler(unet, SCHEDULE, clip_sample_range=1.0, timestep_spacing="trailing", **chain[0])


def alone(unet, chain):
    _, seed, label, guidance, _ = chain
    return sampler_of(unet, chain).sample(
        seeds=[seed], shape=SHAPE, class_labels=[label], guidance_scale=guidance, progress=False
    )


def together(unet, engine, ring=0):
    """The chains' images from one loop, and what the slot that rests held before and after."""
    plans = [sampler_of(unet, chain).plan for chain in CHAINS]
    arena = Arena(40)
    bases = [arena.enter(plan) for plan in plans]
    case = StepCase((SLOTS, *SHAPE), guided=True, clip=True, kept=1, arena=True, ring=ring)
    loops = Loops(engine, steps_per_graph=1)
    labels = torch.zeros(2 * SLOTS, dtype=torch.int64)
    with without_grad(), in_eval_mode(unet, [Inventory([unet])]):
        loop = loops.get(
            unet,
            case,
            device=torch.device("cpu"),
            dtype=torch.float32,
            n_steps=1,
            capacity=40,
            time_dtype=torch.int64,
            cond={"class_labels": labels},
            condition=None,
        )
        loop.hold_arena(torch.tensor(arena.table[: len(arena)]), torch.tensor(arena.model_time[: len(arena)]))
        loop.buffers.x.normal_(generator=torch.Generator().manual_seed(0))
        resting, images = loop.buffers.x[-1].clone(), [None] * len(CHAINS)
        for step in range(max(len(plan) + chain[4] for plan, chain in zip(plans, CHAINS, strict=True))):
            values = {
                "counter": torch.zeros(SLOTS, 2, dtype=torch.int64) + torch.tensor([IDLE, 0]),
                "base": torch.zeros(SLOTS, dtype=torch.int64),
                "advance": torch.zeros(SLOTS, dtype=torch.int64),
                "seeds": torch.zeros(SLOTS, dtype=torch.int64),
                "guidance": torch.zeros(SLOTS),
                "cond class_labels": torch.full((2 * SLOTS,), unet.config.num_classes),
            }
            for i, (_, seed, label, guidance, start) in enumerate(CHAINS):
                if start <= step < start + len(plans[i]):
                    values["counter"][i, 0] = bases[i] + step - start
                    values["base"][i], values["advance"][i] = bases[i], 1
                    values["seeds"][i], values["guidance"][i] = seed, guidance
                    values["cond class_labels"][SLOTS + i] = label
            # Where nothing begins or ends, the counter goes on by itself.
            begins = [i for i, chain in enumerate(CHAINS) if chain[4] == step]
            ends = any(chain[4] + len(plan) == step for plan, chain in zip(plans, CHAINS, strict=True))
            if begins or ends:
                loop.admit(values, begins)
            loop.run(1)
            for i, chain in enumerate(CHAINS):
                if step == chain[4] + len(plans[i]) - 1:
                    images[i] = loop.buffers.x[i : i + 1].clone()
        return images, resting, loop.buffers.x[-1].clone()


@pytest.mark.parametrize("way", ["drawn in the step", "drawn ahead", "captured"])
def test_each_image_is_the_one_it_is_alone(way, monkeypatch):
    unet = make_unet()
    monkeypatch.setattr("fastddpm.engine.executors.CudaGraphBackend", RecordingBackend)
    engine = "cudagraph" if way == "captured" else "eager"
    images, before, after = together(unet, engine, ring=4 if way == "drawn ahead" else 0)
    for chain, image in zip(CHAINS, images, strict=True):
        assert (image - alone(unet, chain)).abs().max() <= ACROSS_BATCHES
    assert torch.equal(before, after)

"""Tiny samplers and their exports, made once for all tests of the ONNX runtime side."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

from networks import TINY, make_unet

import fastddpm
from fastddpm import NoiseSchedule, Sampler, UNetConfig

SUPERRES = UNetConfig(
    in_channels=6, out_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4, time_scale=1000.0
)
LEARNED = UNetConfig(**{**TINY.to_dict(), "out_channels": 6})

_folders: list[tempfile.TemporaryDirectory[str]] = []


@functools.cache
def tiny_sampler(kind: str) -> Sampler:
    """A PyTorch sampler of 3x8x8 images.

    "classes": four classes and a null label, ten clipped ddpm steps. "superres": a condition image and noise
    levels, v-prediction. "learned": classes and a learned variance.
    """
    network = make_unet({"classes": TINY, "superres": SUPERRES, "learned": LEARNED}[kind])
    options = {
        "classes": {},
        "superres": {"time_input": "noise_level", "prediction_type": "v_prediction"},
        "learned": {"variance_type": "learned_range"},
    }[kind]
    return Sampler(
        network,
        NoiseSchedule.linear(1000),
        num_inference_steps=10,
        clip_sample_range=1.0,
        shape=(3, 8, 8),
        engine="eager",
        **options,
    )


@functools.cache
def exported(kind: str) -> Path:
    """The export of `tiny_sampler(kind)`, or of the "bundled" model. Not to be changed."""
    _folders.append(tempfile.TemporaryDirectory(prefix="fastddpm-onnx-"))
    sampler = fastddpm.load() if kind == "bundled" else tiny_sampler(kind)
    # The exporter's own tests verify; here it is the runtime that is tested.
    return fastddpm.export_onnx(sampler, Path(_folders[-1].name) / kind, verify=False)

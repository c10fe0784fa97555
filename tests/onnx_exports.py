"""Tiny samplers and their exports, made once for all tests of the ONNX runtime side."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from networks import TINY, make_unet

import fastddpm
from fastddpm import NoiseSchedule, Sampler, UNet, UNetConfig

if TYPE_CHECKING:
    from fastddpm.export.call import NetworkCall
    from fastddpm.export.network import ExportedNetwork

SUPERRES = UNetConfig(
    in_channels=6, out_channels=3, base_channels=8, channel_mults=(1, 2), num_groups=4, time_scale=1000.0
)
LEARNED = UNetConfig(**{**TINY.to_dict(), "out_channels": 6})

CLASS_NAMES = ["cat", "dog", "3", "T-shirt, top"]

home = Path()
"""A folder that all workers of a run of pytest share: conftest.py says which."""


@functools.cache
def tiny_sampler(kind: str) -> Sampler:
    """A PyTorch sampler of 3x8x8 images.

    "classes": four classes and a null label, ten clipped ddpm steps. "superres": a condition image and noise
    levels, v-prediction. "learned": classes that have names, and a learned variance.
    """
    network = make_unet({"classes": TINY, "superres": SUPERRES, "learned": LEARNED}[kind])
    options = {
        "classes": {},
        "superres": {"time_input": "noise_level", "prediction_type": "v_prediction"},
        "learned": {"variance_type": "learned_range", "class_names": CLASS_NAMES},
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


_translations: dict[tuple[UNet, bool], ExportedNetwork] = {}


def translated(model: UNet, call: NetworkCall) -> ExportedNetwork:
    """`export_network`, once for each of our UNets: of a call, its dtype alone is in their files."""
    from fastddpm.export.network import export_network

    key = (model, call.half)
    if key not in _translations:
        _translations[key] = export_network(model, call)
    return dataclasses.replace(_translations[key], call=call)


@functools.cache
def exported(kind: str) -> Path:
    """The export of `tiny_sampler(kind)`, made by the first worker that asks. Not to be changed."""
    folder = home / f"onnx-{kind}"
    with FileLock(home / f"onnx-{kind}.lock"):
        if not folder.exists():
            # The exporter's own tests verify; here it is the runtime that is tested.
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("fastddpm.export.export_network", translated)
                fastddpm.export_onnx(tiny_sampler(kind), folder, verify=False)
    return folder

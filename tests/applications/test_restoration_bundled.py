"""The bundled restoration models: their quality, and their steps as captured loops."""

from __future__ import annotations

import pytest
import torch
from replay import RecordingBackend
from tolerances import SAME_OPS

from fastddpm import Sampler, load
from fastddpm.data import open_dataset
from fastddpm.data.photographs import load_photographs
from fastddpm.engine import Loops, executors
from fastddpm.evaluation import load_digit_classifier
from fastddpm.repaint import repaint
from fastddpm.restoration import TiledModel, load_restorer
from fastddpm.sources import ASSETS

DIGITS = 30


def psnr(images, truth):
    return float(-10 * ((images - truth) / 2).square().mean().log10())


@pytest.mark.parametrize(("name", "gain"), [("mnist_sr", 4.0), ("mnist_deblur", 4.0)])
def test_restored_digits_are_nearer_and_read_better(name, gain):
    data = open_dataset("mnist", split="test")
    truth, labels = data.batch(torch.arange(DIGITS) * len(data) // DIGITS)
    restorer = load_restorer(name)
    condition = restorer.task.condition(truth, torch.arange(DIGITS) + 2**50, 0)
    restored = restorer.sampler.sample(seeds=range(DIGITS), condition=condition, progress=False)
    assert psnr(restored, truth) > psnr(condition, truth) + gain
    classifier = load_digit_classifier()
    assert (classifier.read(restored)[0] == labels).float().mean() >= 0.9


def test_the_mean_of_a_restored_photograph_is_nearer_than_bicubic():
    pixels = load_photographs("test")["china"][:, 200:328, 250:378]
    truth = pixels[None].float() / 127.5 - 1
    restorer = load_restorer("photo_sr")
    condition = restorer.task.condition(truth, torch.arange(1), 0)
    mean = torch.cat(list(restorer.draws(condition, range(4)))).mean(0, keepdim=True)
    assert psnr(mean, truth) > psnr(condition, truth)


@pytest.mark.parametrize("name", ["mnist_sr", "mnist_deblur", "photo_sr"])
def test_each_model_is_small_and_has_a_card(name):
    folder = ASSETS / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 5e6
    card = (folder / "README.md").read_text()
    assert "fastddpm train --task" in card
    assert "benchmarks/restoration.py" in card


def captured(sampler, monkeypatch):
    monkeypatch.setattr(executors, "CudaGraphBackend", RecordingBackend)
    other = sampler.replace()
    other.runner.loops = Loops("cudagraph")
    return other


def test_a_tiled_chain_can_be_captured(monkeypatch):
    bundled = load("mnist_sr", num_inference_steps=3)
    options = {**bundled.options, "shape": (1, 28, 36)}
    tiled = Sampler(TiledModel(bundled.model, 28, 7), bundled.schedule, **options)
    replayed = captured(tiled, monkeypatch)
    for seed in (1, 2):  # the second runs no Python of the step
        call = {"seeds": [seed], "condition": torch.full((1, 1, 28, 36), 0.1 * seed), "progress": False}
        torch.testing.assert_close(replayed.sample(**call), tiled.sample(**call), atol=SAME_OPS, rtol=0)


def test_repaint_runs_on_captured_steps(monkeypatch):
    sampler = load("mnist", method="ddim", eta=1.0, num_inference_steps=4)
    images, mask = torch.zeros(1, 1, 28, 28), torch.zeros(1, 1, 28, 28)
    mask[..., 10:18, 10:18] = 1
    options = {"class_labels": 3, "jump": 1, "resample": 2, "progress": False}
    replayed = captured(sampler, monkeypatch)
    for seed in (1, 2):
        expected = repaint(sampler, images, mask, seeds=[seed], **options)
        result = repaint(replayed, images, mask, seeds=[seed], **options)
        torch.testing.assert_close(result, expected, atol=SAME_OPS, rtol=0)

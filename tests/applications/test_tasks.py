"""Degradations against Pillow and SciPy, tasks and their files, noise levels, training with a condition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage
import skimage.data
import torch
from PIL import Image
from training_cases import SCHEDULE, Bars, config

from fastddpm import UNetConfig, load
from fastddpm.checkpoint import CheckpointError
from fastddpm.data import open_dataset
from fastddpm.data.photographs import SPLIT, load_photographs
from fastddpm.tasks import (
    Colorize,
    Deblur,
    Inpaint,
    SuperResolve,
    degradations,
    make_task,
    read_task,
    task_from_dict,
    write_task,
)
from fastddpm.tasks.registry import task_to_dict
from fastddpm.training import Objective, Trainer
from fastddpm.training.objective import Noiser

TASKS = [SuperResolve(factor=2, gain=3.0), Deblur(blur="motion", length=5), Deblur(), Inpaint(), Colorize()]


@pytest.fixture
def images():
    return torch.rand(3, 3, 24, 20, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("height", "width"), [(6, 5), (48, 60), (7, 33)])
def test_scaling_is_pillows(images, height, width):
    ours = degradations.rescaled(images, height, width)
    for plane, expected in zip(ours[1], images[1], strict=True):
        pillows = Image.fromarray(expected.numpy()).resize((width, height), Image.Resampling.BICUBIC)
        # torch has places in the image in float32, where 60 pixels are known to 4e-6.
        np.testing.assert_allclose(plane, pillows, atol=5e-6)


def test_gaussian_blur_is_scipys(images):
    ours = degradations.gaussian_blur(images, 2.0)
    expected = scipy.ndimage.gaussian_filter(
        images.double().numpy(), (0, 0, 2, 2), mode="nearest", truncate=3.0
    )
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_line_is_a_box_shared_among_pixels():
    # A box of 3 pixels convolved with the hat of bilinear sharing: 1/8, 7/8, 1, 7/8, 1/8, over 3.
    kernel = degradations.line_kernel(3, 0.0)
    np.testing.assert_allclose(kernel[2], np.array([1, 7, 8, 7, 1]) / 24, atol=2e-3)
    assert float(kernel.sum()) == pytest.approx(1)
    torch.testing.assert_close(degradations.line_kernel(3, math.pi / 2), kernel.T)


def test_motion_blur_has_a_line_per_sample(images):
    angles = torch.tensor([0.3, 1.2, 2.5])
    ours = degradations.motion_blur(images, 7, angles)
    for i, angle in enumerate(angles.tolist()):
        kernel = degradations.line_kernel(7, angle).double().numpy()
        for plane, expected in zip(ours[i], images[i], strict=True):
            blurred = scipy.ndimage.correlate(expected.double().numpy(), kernel, mode="nearest")
            np.testing.assert_allclose(plane, blurred, atol=1e-6)
        # The axis along which the kernel is long; rows grow downwards.
        rows, columns = np.mgrid[: len(kernel), : len(kernel)] - len(kernel) // 2
        spread = [(kernel * product).sum() for product in (-rows * columns, columns**2 - rows**2)]
        along = 0.5 * math.atan2(2 * spread[0], spread[1]) % math.pi
        assert along == pytest.approx(angle, abs=0.03)


def test_conditions_follow_from_seed_and_ordinal_alone(images):
    ordinals = torch.tensor([7, 2**33 + 1, 12])
    for task in TASKS:
        together = task.condition(images, ordinals, 5)
        assert together.shape == (3, task.channels(3), 24, 20)
        torch.testing.assert_close(task.condition(images[1:2], ordinals[1:2], 5), together[1:2])
        is_random = isinstance(task, (Deblur, Inpaint))
        assert is_random != torch.equal(task.condition(images, ordinals + 1, 5), together)
        assert is_random != torch.equal(task.condition(images, ordinals, 6), together)


def test_deblurring_noise_has_its_deviation():
    ordinals = torch.arange(50)
    condition = Deblur(sigma=1.0, noise=0.2).condition(torch.zeros(50, 1, 32, 32), ordinals, 0)
    assert float(condition.std()) == pytest.approx(0.2, rel=0.01)
    assert float(condition.mean()) == pytest.approx(0, abs=0.005)
    # Levels of a file.
    levels = (condition + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)


def test_boxes_are_rectangles_of_a_quarter_to_a_half():
    unknown = degradations.boxes(degradations.uniform(torch.arange(500), 0), 40, 28)
    for box in unknown[:, 0]:
        rows, columns = box.any(1).nonzero()[:, 0], box.any(0).nonzero()[:, 0]
        tall, wide = len(rows), len(columns)
        assert 10 <= tall <= 20
        assert 7 <= wide <= 14
        assert box.sum() == tall * wide
    # Everywhere, corners too.
    assert unknown.amax(0).all()


def test_inpainting_hides_what_is_unknown(images):
    condition = Inpaint().condition(images, torch.arange(3), 0)
    shown, unknown = condition[:, :3], condition[:, 3:]
    assert 0 < unknown.mean() < 0.25
    torch.testing.assert_close(shown, torch.where(unknown > 0, 0.0, images))


def test_grey_is_pillows_luma(images):
    pixels = ((images[0] + 1) * 127.5).round().to(torch.uint8)
    expected = np.asarray(Image.fromarray(pixels.movedim(0, -1).numpy()).convert("L"), np.float64)
    grey = Colorize().condition(pixels[None].float() / 127.5 - 1, torch.arange(1), 0)
    np.testing.assert_allclose((grey[0, 0] + 1) * 127.5, expected, atol=1.0)


def test_target_and_restored_are_inverse(images):
    for task in (SuperResolve(factor=4, gain=5.0), Colorize(gain=2.0), Deblur()):
        condition = task.condition(images, torch.arange(3), 0)
        torch.testing.assert_close(task.restored(task.target(images, condition), condition), images)
    residual = SuperResolve(factor=4, gain=5.0)
    condition = residual.condition(images, torch.arange(3), 0)
    torch.testing.assert_close(residual.target(images, condition), 5 * (images - condition))


def test_task_files(tmp_path):
    assert read_task(tmp_path) is None
    for task in TASKS:
        assert task_from_dict(task_to_dict(task)) == task
        write_task(tmp_path, task)
        assert read_task(tmp_path) == task
    (tmp_path / "task.json").write_text('{"task": "sr", "sigma": 2}')
    with pytest.raises(
        CheckpointError, match=r"task\.json: sigma: unknown to the task sr, given, gain, factor accepted"
    ):
        read_task(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "upscale"}, "task: 'upscale' given, one of sr, deblur, inpaint, colorize accepted"),
        ({"name": "sr", "factor": 1}, r"factor: 1 given, an integer in \[2, 16\] accepted"),
        ({"name": "deblur", "blur": "box"}, "blur: .* given, one of gaussian, motion"),
        ({"name": "deblur", "noise": -1}, "noise: -1 given, a finite number"),
        ({"name": "inpaint", "gain": 2.0}, "gain: unknown to the task inpaint, given, none accepted"),
    ],
)
def test_bad_tasks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_task(**arguments)


def test_a_factor_must_divide(images):
    with pytest.raises(ValueError, match="factor: 16 for images of 24x20 given"):
        SuperResolve(factor=16).condition(images, torch.arange(3), 0)


@pytest.mark.parametrize("time_input", ["noise_level", "alphas_cumprod"])
def test_noise_levels_are_those_of_sr3(time_input):
    """Saharia et al. 2021, section 2.3: t evenly, then sqrt(abar) evenly between its neighbours; in Palette's
    code (Saharia et al. 2022) abar itself."""
    noiser = Noiser(SCHEDULE, Objective(), seed=1, time_input=time_input)
    x_0 = torch.full((20_000, 1, 1, 2), 0.5)
    batch = noiser(x_0, None, torch.arange(20_000))
    level = batch.t.double()
    power = {"noise_level": 0.5, "alphas_cumprod": 1.0}[time_input]
    edges = np.append(1.0, np.cumprod(1 - SCHEDULE.betas) ** power)
    t = np.searchsorted(-edges, -level.numpy(), side="right") - 1
    assert t.min() == 0
    assert t.max() == 99
    counts = np.bincount(t, minlength=100)
    # 200 of each on average; a standard deviation of 14.
    assert abs(counts - 200).max() < 70
    share = (level.numpy() - edges[t + 1]) / (edges[t] - edges[t + 1])
    assert np.histogram(share, 4, (0, 1))[0] == pytest.approx(5000, rel=0.05)
    signal = level[:, None, None, None] ** (0.5 / power)
    expected = signal * x_0 + (1 - signal**2).sqrt() * batch.target
    torch.testing.assert_close(batch.x_t.double(), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(batch.t, level, rtol=0)


def test_photographs_are_those_of_the_packages():
    train, test = load_photographs("train"), load_photographs("test")
    np.testing.assert_array_equal(train["astronaut"].movedim(0, -1), skimage.data.astronaut())
    np.testing.assert_array_equal(train["camera"][2], skimage.data.camera())
    assert set(test) == {"china", "flower"}
    assert not set(SPLIT["train"]) & {*SPLIT["validation"], *SPLIT["test"]}
    tiles = open_dataset("photographs", size=32)
    assert tiles.shape == (3, 32, 32)
    first, _ = tiles.batch([0, 1])
    expected = skimage.data.astronaut()[:32, 8:40].transpose(2, 0, 1) / 127.5 - 1
    np.testing.assert_allclose(first[1], expected, atol=1e-6)


def conditional_trainer(run, steps=8, **changes):
    task = Deblur(sigma=1.0, noise=0.3)
    sampler = {
        "method": "ddim",
        "num_inference_steps": 2,
        "prediction_type": "v_prediction",
        "time_input": "noise_level",
        "shape": [1, 8, 8],
    }
    model = UNetConfig(
        in_channels=2, out_channels=1, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=16
    )
    options = config(steps=steps, checkpoint_every=4, objective=Objective("v_prediction"), **changes)
    return Trainer(options, model, SCHEDULE, Bars(), run, validation=Bars(), sampler=sampler, task=task)


def test_a_conditional_run_goes_on_exactly(tmp_path, monkeypatch):
    whole = load(conditional_trainer(tmp_path / "whole").train(progress=False))
    cut = conditional_trainer(tmp_path / "cut")
    write = cut._write

    def stop(entry, checkpoint):
        write(entry, checkpoint)
        if checkpoint:
            raise KeyboardInterrupt

    monkeypatch.setattr(cut, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        cut.train(progress=False)
    again = load(conditional_trainer(tmp_path / "cut").train(progress=False))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert read_task(tmp_path / "whole" / "model") == Deblur(sigma=1.0, noise=0.3)
    assert whole.options["time_input"] == "noise_level"
    picture = np.asarray(Image.open(tmp_path / "whole" / "samples" / "step_00000008.png"))
    assert picture.std() > 0
    other = conditional_trainer(tmp_path / "whole")
    other.task = Deblur(sigma=1.0, noise=0.2)
    with pytest.raises(ValueError, match=r"noise: 0\.2 for the run in"):
        other.train(progress=False)


def test_the_network_is_shown_the_condition(tmp_path):
    """Without the condition the loss at high noise cannot fall below the variance of the images."""
    trainer = conditional_trainer(tmp_path / "run", steps=4)
    batch = trainer._batch(0)
    assert batch.inputs.shape == (8, 2, 8, 8)
    torch.testing.assert_close(batch.inputs[:, :1], batch.condition)
    torch.testing.assert_close(batch.inputs[:, 1:], batch.x_t)

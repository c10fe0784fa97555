"""Large pictures from the top down: the whole picture's images, in a file written row by row."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import random_pixels
from PIL import Image
from torch import nn

from fastddpm import NoiseSchedule, Sampler, UNet, UNetConfig
from fastddpm.restoration import Picture, Restorer, read_picture, streamed
from fastddpm.restoration.png import png_rows
from fastddpm.restoration.streamed import can_stream, restore_to_files
from fastddpm.tasks import Colorize, Deblur, Inpaint, SuperResolve
from fastddpm_kernels import normal
from fastddpm_kernels.noise.torch_twin import normal_part

TILE = 16


def restorer_of(task, channels, **options):
    """A network of noise-sensitive, random weights."""
    config = UNetConfig(
        in_channels=channels + task.channels(channels),
        out_channels=channels,
        base_channels=8,
        channel_mults=(1, 2),
        num_groups=4,
        time_dim=16,
    )
    torch.manual_seed(3)
    network = UNet(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    usual = {"prediction_type": "sample", "clip_sample_range": 1.0, "timestep_spacing": "trailing"}
    options = {"shape": (channels, TILE, TILE), "engine": "eager"} | usual | options
    sampler = Sampler(network.eval(), NoiseSchedule.cosine(20), **options)
    return Restorer(sampler, task)


def picture_of(height, width, channels, alpha=False):
    pixels = torch.from_numpy(random_pixels(height, width, channels)).movedim(-1, 0)
    return Picture(pixels, pixels[0] if alpha else None, b"a profile")


DDIM = {"method": "ddim", "num_inference_steps": 3}
CASES = {
    "sr": (SuperResolve(factor=2, gain=2.0), 3, (37, 20), 3, DDIM),
    "sr 3, noise of each step": (
        SuperResolve(factor=3),
        3,
        (15, 11),
        3,
        {"method": "ddpm", "num_inference_steps": 4},
    ),
    "kept predictions": (
        SuperResolve(factor=2),
        3,
        (21, 17),
        3,
        {"method": "dpmpp_2m", "num_inference_steps": 5},
    ),
    "grey model, colours of the source": (SuperResolve(factor=2), 1, (19, 17), 3, DDIM),
    "colour model, grey source": (Deblur(), 3, (50, 30), 1, DDIM),
    "colorize": (Colorize(), 3, (35, 40), 1, DDIM),
    "inpaint": (Inpaint(), 3, (40, 33), 3, DDIM),
}


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_rows_are_those_of_the_whole_picture(tmp_path, case, alpha):
    task, channels, size, colours, options = CASES[case]
    restorer, picture = restorer_of(task, channels, **options), picture_of(*size, colours, alpha)
    mask = torch.rand(size) > 0.5 if isinstance(task, Inpaint) else None
    seeds = [3, 2**40]
    whole = restorer.restore(picture, seeds=seeds, mask=mask)
    assert whole[0].pixels.float().std() > 10
    assert (whole[0].pixels.float() - whole[1].pixels.float()).std() > 1
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert restore_to_files(restorer, picture, paths, seeds=seeds, mask=mask) == whole[0].size
    for path, one in zip(paths, whole, strict=True):
        read = read_picture(path)
        # A profile of grey belongs into no file of colours, says the specification of PNG (11.3.3.3).
        assert read.profile == one.profile == (None if case == "colorize" else b"a profile")
        # A pixel's level may round otherwise where batches of tiles differ.
        assert (read.pixels.int() - one.pixels.int()).abs().max() <= 1
        assert (read.pixels != one.pixels).float().mean() < 1e-3
        assert (read.alpha is None) == (not alpha)
        if alpha:
            assert torch.equal(read.alpha, one.alpha)
    restore_to_files(restorer, picture, [tmp_path / "mean.png"], seeds=seeds, mask=mask)
    mean = restorer.restore_mean(picture, seeds=seeds, mask=mask).pixels.int()
    assert (read_picture(tmp_path / "mean.png").pixels.int() - mean).abs().max() <= 1


@pytest.mark.parametrize("n", [1, 33, 64, 65, 300, 3072])
def test_parts_of_the_noise_are_those_of_the_whole(n):
    seeds = torch.tensor([3, 2**40 + 5])
    whole = normal(seeds, 4, (n,))
    for first, last in ((0, n), (n // 3, n), (n // 3, n - n // 4), (n - 1, n)):
        assert torch.equal(normal_part(seeds, 4, n, first, last), whole[:, first:last])


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_rows_are_what_pillow_reads(tmp_path, channels):
    pixels = random_pixels(23, 9, channels).reshape(23, 9, channels)
    with png_rows(tmp_path / "a.png", 23, 9, channels, b"a profile") as file:
        for start in (0, 1, 8, 20):
            file.write(pixels[start : {0: 1, 1: 8, 8: 20, 20: 23}[start]])
    read = Image.open(tmp_path / "a.png")
    read.load()
    np.testing.assert_array_equal(np.asarray(read).reshape(23, 9, channels), pixels)
    assert read.info["icc_profile"] == b"a profile"


def test_a_picture_that_fails_leaves_no_file(tmp_path):
    restorer = restorer_of(SuperResolve(factor=2), 3, **DDIM)
    with torch.no_grad():
        restorer.sampler.model.conv_out.bias.fill_(float("nan"))
    (tmp_path / "a.png").write_bytes(b"before")
    with pytest.raises(FloatingPointError, match=r"of seeds 3"):
        restore_to_files(restorer, picture_of(20, 20, 3), [tmp_path / "a.png"], seeds=[3])
    assert (tmp_path / "a.png").read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1


def test_what_looks_at_the_whole_picture_is_not_streamed():
    task = SuperResolve(factor=2)
    assert can_stream(restorer_of(task, 3, **DDIM))
    assert not can_stream(restorer_of(task, 3, **DDIM, clip_sample_range=None, thresholding=True))
    assert not can_stream(restorer_of(task, 3, **DDIM, precision="bf16"))


def test_too_many_samples_of_a_mean_are_refused(tmp_path):
    restorer = restorer_of(SuperResolve(factor=2), 3, **DDIM)
    with pytest.raises(
        ValueError, match="samples: a mean of 9 of so large a picture given, up to 8 accepted"
    ):
        restore_to_files(restorer, picture_of(20, 20, 3), [tmp_path / "a.png"], seeds=range(9))


def test_a_command_streams_what_is_large(tmp_path, run, monkeypatch):
    """By the command line, with the limit lowered; the same picture, a level at most apart."""
    Image.fromarray(random_pixels(48, 40, 3)).save(tmp_path / "a.png")
    assert run("super-resolve", tmp_path / "a.png", tmp_path / "whole.png")[0] == 0
    monkeypatch.setattr(streamed, "WHOLE_PIXELS", 1000)
    drawn = []
    monkeypatch.setattr(
        "fastddpm.cli.restore.restore_to_files", lambda *a, **k: drawn.append(restore_to_files(*a, **k))
    )
    code, out, _ = run("super-resolve", tmp_path / "a.png", tmp_path / "rows.png")
    assert (code, drawn) == (0, [(192, 160)])
    assert "rows.png (160x192" in out
    whole, rows = (np.asarray(Image.open(tmp_path / name)).astype(int) for name in ("whole.png", "rows.png"))
    assert np.abs(whole - rows).max() <= 1
    assert run("super-resolve", tmp_path / "a.png", tmp_path / "rows.webp")[0] == 0
    assert len(drawn) == 1

"""Samples as uint8, grids and files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fastddpm.images import grid, save_gif, save_npz, save_png, to_uint8


def test_uint8_levels():
    values = torch.tensor([-2.0, -1.0, -1 + 1 / 127.5, 0.0, 1 / 255, 1.0, 7.0]).reshape(1, 1, 1, -1)
    # (0 + 1) * 127.5 = 127.5 rounds half to even.
    assert to_uint8(values).ravel().tolist() == [0, 0, 1, 128, 128, 255, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]).reshape(1, 1, 1, 1))


def test_uint8_moves_channels_last():
    image = torch.zeros(2, 3, 4, 5)
    image[1, 2, 3, 4] = 1.0
    pixels = to_uint8(image)
    assert pixels.shape == (2, 4, 5, 3)
    assert np.argwhere(pixels == 255).tolist() == [[1, 3, 4, 2]]


def test_grid_places_images_row_by_row():
    pixels = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(300, 1).repeat(300, 2).repeat(3, 3)
    picture = grid(pixels, columns=3)
    assert picture.shape == (2 * 302 + 2, 3 * 302 + 2, 3)
    for i in range(5):
        top, left = 2 + i // 3 * 302, 2 + i % 3 * 302
        assert (picture[top : top + 300, left : left + 300] == i).all()
    assert (picture[:2] == 255).all()
    assert (picture[304:, 606:] == 255).all()


def test_small_images_are_enlarged_by_whole_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), np.uint8)
    picture = grid(pixels)
    factor = picture.shape[0] // 62
    assert factor > 1
    assert (picture[::factor, ::factor][2:30, 2:30] == pixels[0]).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_files(tmp_path, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 7, channels), np.uint8)
    save_png(tmp_path / "a.png", pixels[0])
    assert (np.asarray(Image.open(tmp_path / "a.png")).reshape(6, 7, channels) == pixels[0]).all()
    save_npz(tmp_path / "a.npz", pixels, [1, 2, 3], [7, 8, 2**63 - 1])
    with np.load(tmp_path / "a.npz") as arrays:
        assert (arrays["arr_0"] == pixels).all()
        assert arrays["arr_1"].tolist() == [1, 2, 3]
        assert arrays["seeds"].tolist() == [7, 8, 2**63 - 1]
    save_gif(tmp_path / "a.gif", list(pixels))
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.npz", "a.png"]

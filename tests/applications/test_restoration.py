"""Pictures of every mode in and out, tiles against closed forms, a restorer whose network predicts zero."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from pictures import big_png, random_pixels
from PIL import Image
from torch import nn

from fastddpm import NoiseSchedule, Sampler, UNet, UNetConfig
from fastddpm.restoration import Picture, Restorer, TiledModel, read_picture
from fastddpm.restoration.picture import MAX_PIXELS
from fastddpm.restoration.tiles import tile_starts
from fastddpm.restoration.zero_shot import ZeroShotInpainter
from fastddpm.tasks import Colorize, Deblur, Inpaint, SuperResolve

ORIENTATION = 0x0112


def zero_restorer(task, channels, tile=16):
    """The network's x_0 is 0 everywhere, so a task with a gain gives back its base."""
    condition = task.channels(channels)
    config = UNetConfig(
        in_channels=channels + condition,
        out_channels=channels,
        base_channels=8,
        channel_mults=(1, 2),
        num_groups=4,
        time_dim=16,
    )
    unet = UNet(config)
    for parameter in unet.parameters():
        nn.init.zeros_(parameter)
    options = {"method": "ddim", "num_inference_steps": 2, "prediction_type": "sample"}
    sampler = Sampler(unet, NoiseSchedule.cosine(20), shape=(channels, tile, tile), **options)
    return Restorer(sampler, task)


def pixels_of(picture):
    return picture.pixels.movedim(0, -1).numpy()


# ---------------------------------------------------------------- pictures


def test_modes_are_read_as_what_they_show(tmp_path):
    rgba = random_pixels(9, 7, 4)
    colour = Image.fromarray(rgba)
    for mode, alpha in (("RGB", False), ("RGBA", True), ("L", False), ("LA", True), ("1", False)):
        path = tmp_path / f"{mode}.png"
        colour.convert(mode).save(path)
        picture = read_picture(path)
        expected = np.asarray(colour.convert(mode).convert("RGB" if "RGB" in mode else "L"))
        np.testing.assert_array_equal(pixels_of(picture).squeeze(), expected)
        assert (picture.alpha is not None) == alpha
        if alpha:
            np.testing.assert_array_equal(picture.alpha, rgba[..., 3])


def test_other_colour_models_become_rgb(tmp_path):
    colour = Image.fromarray(random_pixels(9, 7, 3))
    colour.convert("CMYK").save(tmp_path / "cmyk.tif")
    expected = np.asarray(colour.convert("CMYK").convert("RGB"))
    np.testing.assert_array_equal(pixels_of(read_picture(tmp_path / "cmyk.tif")), expected)
    palette = colour.quantize(16)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        pixels_of(read_picture(tmp_path / "palette.png")), np.asarray(palette.convert("RGB"))
    )
    palette.save(tmp_path / "clear.png", transparency=3)
    picture = read_picture(tmp_path / "clear.png")
    np.testing.assert_array_equal(picture.alpha == 0, np.asarray(palette) == 3)


def test_sixteen_bits_become_eight(tmp_path):
    levels = np.linspace(0, 65535, 63).reshape(9, 7).astype(np.uint16)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(
        pixels_of(read_picture(tmp_path / "deep.png"))[..., 0], np.rint(levels / 257.0).astype(np.uint8)
    )


def test_orientation_is_applied_and_the_profile_kept(tmp_path):
    pixels = random_pixels(6, 10, 3)
    image = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a quarter turn clockwise shows it upright
    image.save(tmp_path / "turned.png", exif=exif, icc_profile=b"a profile")
    picture = read_picture(tmp_path / "turned.png")
    np.testing.assert_array_equal(pixels_of(picture), np.rot90(pixels, -1))
    picture.write(tmp_path / "out.png")
    written = Image.open(tmp_path / "out.png")
    assert written.info["icc_profile"] == b"a profile"
    assert ORIENTATION not in written.getexif()
    np.testing.assert_array_equal(np.asarray(written), np.rot90(pixels, -1))


@pytest.mark.parametrize(("side", "factor"), [(20_000, 1), (5_000, 1), (2_000, 4)])
def test_large_images_are_refused_by_their_header(tmp_path, side, factor):
    big_png(tmp_path / "big.png", side, side)
    began = time.process_time()
    with pytest.raises(ValueError, match=f"{MAX_PIXELS:,} pixels accepted"):
        read_picture(tmp_path / "big.png", factor)
    assert time.process_time() - began < 1


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png: no image that can be read"):
        read_picture(tmp_path / "text.png")
    with pytest.raises(ValueError, match="not a file"):
        read_picture(tmp_path / "none.png")
    Image.fromarray(random_pixels(64, 64, 3)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.png: a damaged image"):
        read_picture(tmp_path / "cut.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif: floating point pixels"):
        read_picture(tmp_path / "float.tif")


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
def test_a_picture_of_a_phone_says_what_reads_it(tmp_path, brand):
    """As phones write them: a box `ftyp`, here without the picture after it."""
    path = tmp_path / "IMG_0001.HEIC"
    path.write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(64))
    with pytest.raises(ValueError, match=r"IMG_0001\.HEIC: an HEIC picture, .* pip install pillow-heif"):
        read_picture(path)
    path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(72))
    with pytest.raises(ValueError, match="no image that can be read"):
        read_picture(path)


def test_tiles_cover_evenly():
    for tile, overlap in ((16, 4), (28, 7), (5, 0)):
        for length in range(tile, 90):
            starts = tile_starts(length, tile, overlap)
            assert (starts[0], starts[-1]) == (0, length - tile)
            steps = np.diff(starts)
            assert all(1 <= step <= tile - overlap for step in steps)
            assert len(starts) == 1 or len(starts) - 1 < (length - tile) / (tile - overlap) + 1


class TileMean(nn.Module):
    """Each tile's mean, everywhere in it."""

    def forward(self, x, t):
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)


def test_tiles_are_blended_along_a_ramp():
    # Two tiles of 8 in 12 columns, of means 0 and 1: over the 4 shared columns the weights are 4:1 to 1:4.
    x = torch.zeros(1, 1, 8, 12)
    x[..., 8:] = 2.0
    blended = TiledModel(TileMean(), 8, 4)(x, torch.zeros(1))
    expected = torch.tensor([0.0] * 4 + [0.2, 0.4, 0.6, 0.8] + [1.0] * 4)
    torch.testing.assert_close(blended[0, 0], expected.expand(8, 12))
    # In 10 columns they share 6, more than the 2 asked for, over which they rise: 3:1, 3:2, 3:3 and back.
    x = torch.zeros(1, 1, 8, 10)
    x[..., 8:] = 4.0
    blended = TiledModel(TileMean(), 8, 2)(x, torch.zeros(1))
    expected = torch.tensor([0.0] * 2 + [1 / 4, 2 / 5, 1 / 2, 1 / 2, 3 / 5, 3 / 4] + [1.0] * 2)
    torch.testing.assert_close(blended[0, 0], expected.expand(8, 10))


class Labelled(nn.Module):
    def forward(self, x, t, class_labels):
        return x * (class_labels + 10 * t)[:, None, None, None]


def test_tiles_of_a_pointwise_network_change_nothing():
    x, t, labels = torch.randn(3, 2, 30, 41), torch.full((3,), 3), torch.arange(3)
    ours = TiledModel(Labelled(), 16, 5)(x, t, class_labels=labels)
    torch.testing.assert_close(ours, Labelled()(x, t, labels), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="overlap: 16 for tiles of 16 given, 0 to 15"):
        TiledModel(Labelled(), 16, 16)


def test_a_tiled_chain_has_no_seams_in_noise():
    """A network that predicts x_0 = 0 for pixels of unit noise: tiles or not, the same images."""
    schedule = NoiseSchedule.linear(20)
    options = {"method": "ddpm", "prediction_type": "sample", "shape": (1, 20, 36)}
    network = nn.Conv2d(1, 1, 1, bias=False)
    tiled = Sampler(TiledModel(_Timeless(network), 16, 4), schedule, **options)
    whole = Sampler(_Timeless(network), schedule, **options)
    seeds = [1, 2]
    torch.testing.assert_close(
        tiled.sample(seeds=seeds, progress=False), whole.sample(seeds=seeds, progress=False)
    )


class _Timeless(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, t):
        return self.network(x)


# ---------------------------------------------------------------- restorers


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (9, 14)])
@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("L", 3), ("RGB", 1)])
def test_a_residual_of_zero_is_pillows_bicubic(size, mode, channels):
    # Not so bright or dark that Pillow clips between its two directions.
    image = Image.fromarray(random_pixels(*size, 4) // 2 + 60).convert(mode)
    planes = np.moveaxis(np.atleast_3d(np.asarray(image)), -1, 0).copy()
    alpha = planes[3] if mode == "RGBA" else None
    picture = Picture(torch.from_numpy(planes[:3]), None if alpha is None else torch.from_numpy(alpha))
    [result] = zero_restorer(SuperResolve(factor=4, gain=2.0), channels).restore(picture)
    assert result.size == (4 * size[0], 4 * size[1])
    expected = image.resize((4 * size[1], 4 * size[0]), Image.Resampling.BICUBIC)
    ours = np.asarray(result.image(), np.int64)
    if mode == "RGBA":
        # Pillow multiplies colours by alpha first; here they are scaled by themselves.
        expected = Image.merge(
            "RGBA", [band.resize(expected.size, Image.Resampling.BICUBIC) for band in image.split()]
        )
    # Pillow rounds after each of the two directions.
    assert abs(ours - np.asarray(expected, np.int64)).max() <= 1


def test_small_tiles_and_large_pictures_agree():
    picture = Picture(torch.from_numpy(random_pixels(3, 40, 50)))
    restorer = zero_restorer(Deblur(gain=2.0), 3)
    [result] = restorer.restore(picture)
    np.testing.assert_array_equal(result.pixels, picture.pixels)


def random_restorer():
    torch.manual_seed(0)
    config = UNetConfig(
        in_channels=2, out_channels=1, base_channels=8, channel_mults=(1, 2), num_groups=4, time_dim=16
    )
    options = {"method": "ddim", "num_inference_steps": 3, "eta": 1.0, "clip_sample_range": 1.0}
    return Restorer(Sampler(UNet(config), NoiseSchedule.cosine(20), shape=(1, 16, 16), **options), Deblur())


def test_samples_depend_on_their_own_seeds():
    restorer = random_restorer()
    picture = Picture(torch.from_numpy(random_pixels(1, 20, 30)))
    both = restorer.restore(picture, seeds=[4, 5])
    [second] = restorer.restore(picture, seeds=[5])
    assert (both[1].pixels.int() - second.pixels.int()).abs().max() <= 1
    assert not torch.equal(both[0].pixels, both[1].pixels)
    mean = restorer.restore_mean(picture, seeds=[4, 5])
    expected = (both[0].pixels.double() + both[1].pixels.double()) / 2
    assert (mean.pixels - expected).abs().max() <= 1


def test_restored_images_stay_in_their_range():
    """So that a mean of several is one of pictures. A white one cannot become lighter."""
    restorer = Restorer(random_restorer().sampler, Deblur(gain=2.0))
    white = Picture(torch.full((1, 20, 30), 255, dtype=torch.uint8))
    [images] = restorer.draws(restorer.condition(white), [4, 5])
    assert images.abs().max() == 1
    assert images.min() < 0.9


def test_inpainting_needs_a_mask_of_the_size():
    restorer = zero_restorer(Inpaint(), 1)
    picture = Picture(torch.from_numpy(random_pixels(1, 18, 20)))
    for mask, given in ((None, "none"), (torch.ones(18, 21, dtype=torch.bool), "one of 18x21")):
        with pytest.raises(ValueError, match=f"mask: {given} given, one of 18x20"):
            restorer.restore(picture, mask=mask)
    mask = torch.zeros(18, 20, dtype=torch.bool)
    mask[5:9, 2:7] = True
    condition = restorer.condition(picture, mask)
    assert torch.equal(condition[0, 1], mask.float())
    assert condition[0, 0][mask].abs().max() == 0


def test_colours_come_from_a_grey_picture():
    picture = Picture(torch.from_numpy(random_pixels(1, 16, 16)))
    [result] = zero_restorer(Colorize(gain=1.0), 3).restore(picture)
    assert result.pixels.shape == (3, 16, 16)
    assert torch.equal(result.pixels, picture.pixels.expand(3, -1, -1))


def test_zero_shot_inpainting_keeps_what_is_known():
    inpainter = ZeroShotInpainter.load("mnist", class_label=3, steps=3, jump=1, resample=2)
    colour = Picture(torch.from_numpy(random_pixels(3, 30, 40)), torch.from_numpy(random_pixels(30, 40)))
    mask = torch.zeros(30, 40, dtype=torch.bool)
    mask[5:20, 10:30] = True
    first, second = inpainter.restore(colour, seeds=[1, 2], mask=mask)
    assert torch.equal(first.pixels[:, ~mask], colour.pixels[:, ~mask])
    assert torch.equal(first.alpha, colour.alpha)
    assert not torch.equal(first.pixels[:, mask], second.pixels[:, mask])


def test_a_network_must_fit_its_task():
    restorer = zero_restorer(Deblur(), 1)
    with pytest.raises(ValueError, match="sampler: a network of 2 input channels given, 3 for this task"):
        Restorer(restorer.sampler, Inpaint())

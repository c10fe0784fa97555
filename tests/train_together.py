"""One process of a distributed run, as `test_training_processes.py` starts it: every scenario in turn.

    RANK=0 WORLD_SIZE=2 ... python tests/train_together.py FOLDER [SCENARIO ...]

What each scenario ended with goes to `FOLDER/outcome_RANK.json`, by its name; what a process saw of the
samples to `FOLDER/seen_RANK.safetensors`.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_cases import Broken, recorded, trainer, without_dropout

from fastddpm.training import checkpoints

RANK = int(os.environ["RANK"])


def together(folder: Path) -> None:
    one, seen = recorded(folder / "together")
    one.train(progress=False)
    save_file(seen(), folder / f"seen_{RANK}.safetensors")


def accumulated(folder: Path) -> None:
    trainer(folder / "accumulated", model=without_dropout(), gradient_accumulation=2).train(progress=False)


def interrupted(folder: Path) -> None:
    """The second process alone gets the signal."""
    one = trainer(folder / "interrupted")
    optimize = one._optimize

    def interrupting():
        if one.step == 12 and RANK == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return optimize()

    one._optimize = interrupting
    one.train(progress=False)


def diverged(folder: Path) -> None:
    trainer(folder / "diverged", Broken(), steps=40).train(progress=False)


def full(folder: Path) -> None:
    """The disk is full for the main process, which alone writes."""
    one = trainer(folder / "full")
    write_tensors = checkpoints.write_tensors

    def failing(path, tensors):
        assert RANK == 0
        if one.step == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        write_tensors(path, tensors)

    checkpoints.write_tensors = failing
    try:
        one.train(progress=False)
    finally:
        checkpoints.write_tensors = write_tensors


def main() -> None:
    torch.set_num_threads(1)
    folder, outcome = Path(sys.argv[1]), {}
    scenarios = [together, accumulated, interrupted, diverged, full]
    for scenario in [one for one in scenarios if one.__name__ in sys.argv[2:]] or scenarios:
        try:
            scenario(folder)
            outcome[scenario.__name__] = ["finished", ""]
        except (Exception, KeyboardInterrupt) as error:
            outcome[scenario.__name__] = [type(error).__name__, str(error)]
        (folder / f"outcome_{RANK}.json").write_text(json.dumps(outcome))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

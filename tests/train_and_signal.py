"""`fastddpm train` that gets a signal at a moment of its own, in a fork of this process for each.

    python tests/train_and_signal.py FOLDER DATA

Every run of `MOMENTS` is done twice, in `FOLDER/NAME`: with the signal, and the same command again. What each
ended with and said goes to `FOLDER/outcomes.json`, by its name.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import accelerate  # noqa: F401
import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import torch
import torch._dynamo  # which the first optimiser imports

from fastddpm import configured
from fastddpm.cli import app, train  # noqa: F401
from fastddpm.data import opening
from fastddpm.training import Trainer, checkpoints, report, results

SMALL = "--base-channels 8 --mults 1,2 --steps 8 --batch 4 --checkpoint-every 4 --size 8".split()  # noqa: SIM905

# What is called when the signal comes, for which time in the run, and the signal.
MOMENTS = {
    "none": (None, "", 0, signal.SIGTERM),
    "in the third step, and to workers": (Trainer, "_batch", 3, signal.SIGTERM),
    "while the data is opened": (opening, "gather", 1, signal.SIGTERM),
    "in the third step": (Trainer, "_batch", 3, signal.SIGTERM),
    "while a checkpoint is written": (checkpoints, "write_tensors", 2, signal.SIGTERM),
    "while the model is written": (results, "save_folder", 1, signal.SIGHUP),
    "in a plot": (report, "plot_losses", 1, signal.SIGUSR1),
    "while samples are drawn": (configured, "check_finite", 1, signal.SIGTERM),
    "after the last step": (Trainer, "_finish", 1, signal.SIGTERM),
}


def with_signal(owner: object, name: str, time: int, number: int) -> None:
    """From now on the ``time``-th call of a function begins with two signals, as schedulers repeat them.

    They go to all processes of the run.
    """
    function, calls = getattr(owner, name), []

    def signalled(*given, **named):
        calls.append(1)
        if len(calls) == time:
            for process in (*multiprocessing.active_children(), multiprocessing.current_process()):
                os.kill(process.pid, number)
                os.kill(process.pid, number)
        return function(*given, **named)

    setattr(owner, name, signalled)


def outcome(run: Path, words: list[str], moment) -> dict[str, object]:
    """Of the command in a fork: its exit code and what it said."""
    said = run.with_suffix(".said")
    child = os.fork()
    if child == 0:
        with said.open("w") as file:
            os.dup2(file.fileno(), 2)
        if moment[0] is not None:
            with_signal(*moment)
        sys.argv = ["fastddpm", "train", "--out", str(run), *words]
        code = 99
        try:
            app.main()
        except SystemExit as end:
            code = end.code
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "said": said.read_text()}


def main() -> None:
    torch.set_num_threads(1)
    report.draw_grid.__defaults__ = (None, 1)  # one sample at a checkpoint is enough
    folder, data = Path(sys.argv[1]), sys.argv[2]
    words, outcomes = ["--data", data, *SMALL], {}
    for name, moment in MOMENTS.items():
        run = folder / name
        more = ["--workers", "2"] if "workers" in name else []
        first = outcome(run, [*words, *more], moment)
        first["steps"] = checkpoints.steps(run)
        first["hidden"] = [path.name for path in run.rglob(".*") if path.name != ".lock"]
        outcomes[name] = [first, outcome(run, words, MOMENTS["none"])]
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()

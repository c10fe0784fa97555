"""A process that reads damaged files, one after the other, and says of each what came of it.

A line of JSON comes in, ``{"kind": ..., "root": ..., "words": ...}``, the last for commands alone, and one
goes out: ``outcome`` is ``read``,
``refused`` (an error of the kind that is documented, with a message) or ``wrong`` (any other), with the
seconds of processor time, children's included, and the most memory that the process has had.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path

LIMIT = 3 * 2**30
"""Bytes that may be allocated: beyond them a reader meets a MemoryError, which is no documented answer."""


def main() -> None:
    """Answers until the input ends. Whatever the readers print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    import fuzz_arguments
    import fuzz_samples
    import torch

    import fastddpm.checkpoint  # noqa: F401

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    for line in sys.stdin:
        asked = json.loads(line)
        began = _processor_time()
        answer = {"outcome": "read", "message": ""}
        try:
            if asked["kind"] == "command":
                os.chdir(asked["root"])
                message = fuzz_arguments.run(asked["words"])
                answer = {"outcome": "refused" if message else "read", "message": message}
            else:
                fuzz_samples.READERS[asked["kind"]](Path(asked["root"]))
        except (ValueError, OSError) as error:
            answer = {
                "outcome": "refused" if str(error) else "wrong",
                "message": f"{type(error).__name__}: {error}",
            }
        except BaseException as error:
            answer = {"outcome": "wrong", "message": "".join(traceback.format_exception(error)[-12:])}
        answer["seconds"] = _processor_time() - began
        answer["memory"] = _most_memory()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _most_memory() -> int:
    """In bytes. Not by ``ru_maxrss`` on Linux, which there is at least the starting process's."""
    status = Path("/proc/self/status")
    if status.exists():
        marks = [line.split() for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0][1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _processor_time() -> float:
    of_children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + of_children.ru_utime + of_children.ru_stime


if __name__ == "__main__":
    main()

"""Tasks by name, and the `task.json` of a model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fastddpm.checks import check_choice, check_known
from fastddpm.files import write_json
from fastddpm.formats.files import CheckpointError, read_json
from fastddpm.inputs import Fields, Json
from fastddpm.signatures import checked
from fastddpm.tasks.task import Colorize, Deblur, Inpaint, SuperResolve, Task

TASKS: dict[str, type[Task]] = {
    "sr": SuperResolve,
    "deblur": Deblur,
    "inpaint": Inpaint,
    "colorize": Colorize,
}
TASK_FILE = "task.json"


def make_task(name: str, **parameters: object) -> Task:
    """A task by name.

    Args:
        name: ``sr``, ``deblur``, ``inpaint`` or ``colorize``.
        **parameters: the fields of its class; None is left to the class's default.

    Raises:
        ValueError: another name, a parameter that the task does not have, or a bad value.
    """
    check_choice("task", name, list(TASKS))
    known = [field.name for field in dataclasses.fields(TASKS[name]) if field.init]
    given: Json = {key: value for key, value in parameters.items() if value is not None}
    check_known(given, known, of=f"the task {name}")
    return TASKS[name](**given)


def task_to_dict(task: Task) -> Json:
    """JSON values: ``{"task": name, ...fields}``."""
    name = next(name for name, kind in TASKS.items() if type(task) is kind)
    return {"task": name, **dataclasses.asdict(task)}


@checked
def task_from_dict(values: Fields) -> Task:
    """Inverse of :func:`task_to_dict`."""
    given = dict(values)
    return make_task(given.pop("task", ""), **given)


@checked
def write_task(folder: Path, task: Task) -> None:
    """Writes `task.json` into a model folder, made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TASK_FILE, task_to_dict(task))


@checked
def read_task(folder: Path) -> Task | None:
    """The task of a model folder; None without a `task.json`.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / TASK_FILE
    if not path.exists():
        return None
    try:
        return task_from_dict(read_json(path))
    except CheckpointError:
        raise
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: {error}") from error

"""Tasks from an image to an image: what makes the condition from a clean image, and what is predicted.

    x_0  ->  condition (degraded image)  ->  the network gets it in front of x_t (SR3, Saharia et al. 2021)

degradations.py has the operations, task.py the tasks with their parameters, registry.py their names and JSON.
"""

from fastddpm.tasks.registry import TASK_FILE, TASKS, make_task, read_task, task_from_dict, write_task
from fastddpm.tasks.task import Colorize, Deblur, Inpaint, SuperResolve, Task

__all__ = [
    "TASKS",
    "TASK_FILE",
    "Colorize",
    "Deblur",
    "Inpaint",
    "SuperResolve",
    "Task",
    "make_task",
    "read_task",
    "task_from_dict",
    "write_task",
]

"""Requests for images, drawn in batches that they join and leave at any step (docs/serving.md).

Data flows `Scheduler.submit` -> `Chain` -> `Lane` (slots of one kind) -> `fastddpm.engine.Loop`.
"""

from fastddpm.serving.drawing import Drawing
from fastddpm.serving.errors import Busy, Closed, DeadlinePassed
from fastddpm.serving.scheduler import Scheduler

__all__ = ["Busy", "Closed", "DeadlinePassed", "Drawing", "Scheduler"]

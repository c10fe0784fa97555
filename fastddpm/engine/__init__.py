"""The engine: one step on static buffers, and the ways to run many of them.

Data flows `Loops` -> `Loop` (buffers, network) -> executor (eager, compiled, graph replays) -> `step`.
"""

from fastddpm.engine.capturable import CaptureReport, check_capturable
from fastddpm.engine.errors import EngineUnavailable
from fastddpm.engine.executors import ENGINES, Engine, resolve_engine
from fastddpm.engine.loop import Loop
from fastddpm.engine.loops import Loops
from fastddpm.engine.step import StepCase

__all__ = [
    "ENGINES",
    "CaptureReport",
    "Engine",
    "EngineUnavailable",
    "Loop",
    "Loops",
    "StepCase",
    "check_capturable",
    "resolve_engine",
]

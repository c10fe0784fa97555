"""A look at every operator that a model runs on fake CUDA tensors: which of them would a capture refuse?"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operator(Protocol):
    """torch's OpOverload, whose own types are incomplete."""

    def name(self) -> str: ...
    def __call__(self, *arguments: object, **options: object) -> object: ...


# Frames of these are not the model's own code.
LIBRARY = Path(torch.__file__).parent
HERE = Path(__file__).parent
READ = "a value is read on the host, which waits for the card"
UNKNOWN = "a value of a tensor of the host is read: a graph would keep it as a constant, the check ends here"
SENT = "a tensor of the host is copied to the card"
COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from", "aten::lift_fresh")


@dataclasses.dataclass(frozen=True)
class Offence:
    """One operation that a capture would refuse, or that a replay would not repeat.

    Attributes:
        operator: torch's name, such as ``aten::nonzero``; the exception's where torch ran none.
        reason: what is wrong with it.
        module: path of the submodule that was running, such as ``down.0.attention``; empty for none.
        place: the line of the model's code, as ``file:line: source``; empty where it is not known.
    """

    operator: str
    reason: str
    module: str
    place: str

    def __str__(self) -> str:
        module = f" in {self.module}" if self.module else ""
        place = f"\n    {self.place}" if self.place else ""
        return f"{self.operator}{module}: {self.reason}{place}"


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operator that a capture would refuse."""

    def __init__(self, running: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.offences: list[Offence] = []
        self._running = running
        self._failed: BaseException | None = None

    def __torch_dispatch__(
        self,
        operator: Operator,
        types: object,
        arguments: tuple[object, ...] = (),
        options: dict[str, object] | None = None,
    ) -> object:
        options = options or {}
        name, before = operator.name(), len(self.offences)
        reason = host_traffic(name, tree_leaves((arguments, options)), [])
        if reason:
            self.note(name, reason)
        try:
            result = operator(*arguments, **options)
        except DataDependentOutputException as error:
            self._failed = error
            if len(self.offences) == before:
                on_card = any(isinstance(v, Tensor) and v.is_cuda for v in tree_leaves((arguments, options)))
                self.note(name, READ if on_card else UNKNOWN)
            raise
        except DynamicOutputShapeException as error:
            self._failed = error
            self.note(name, "the shape of its result depends on values, which are read on the host")
            raise
        except Exception as error:
            if len(self.offences) > before:
                self._failed = error
            raise
        reason = host_traffic(name, tree_leaves((arguments, options)), tree_leaves(result))
        if reason and len(self.offences) == before:
            self.note(name, reason)
        return result

    def note(self, operator: str, reason: str, frames: Sequence[traceback.FrameSummary] = ()) -> None:
        """Adds an offence, where the model is now."""
        module = self._running[-1] if self._running else ""
        self.offences.append(Offence(operator, reason, module, place_of(frames or traceback.extract_stack())))

    def ended_by(self, error: Exception) -> None:
        """Notes an exception of the model that is not one of an operator noted already."""
        if error is not self._failed:
            reason = str(error).splitlines()[0] if str(error) else "no message"
            self.note(type(error).__name__, reason, traceback.extract_tb(error.__traceback__))


def host_traffic(name: str, given: Sequence[object], made: Sequence[object]) -> str:
    """What is wrong with an operator's devices, or an empty text.

    A tensor of one number on the host may stand beside tensors of the card: it becomes a constant.
    """
    if any(isinstance(value, torch.Generator) for value in given):
        return "it draws from a generator of its own, which a graph does not advance"
    inputs = [value for value in given if isinstance(value, Tensor)]
    outputs = [value for value in made if isinstance(value, Tensor)]
    from_host = [value for value in inputs if not value.is_cuda and (value.dim() or name in COPIES)]
    if from_host and any(value.is_cuda for value in [*inputs, *outputs]):
        if name in COPIES:
            return SENT
        return "a tensor of the host is among those of the card"
    if any(value.is_cuda for value in inputs) and any(not value.is_cuda for value in outputs):
        return "a tensor is copied to the host, which waits for the card"
    return ""


def place_of(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line that is neither torch's nor the engine's."""
    for frame in reversed(frames):
        file = Path(frame.filename)
        if LIBRARY not in file.parents and HERE not in file.parents and file.name != "contextlib.py":
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return ""

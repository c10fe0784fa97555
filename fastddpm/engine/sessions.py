"""A network run by ONNX Runtime on a CPU; noise, plan and update stay as they are.

The network is traced and handed over when the first step of a loop runs, with that step's own inputs, by
which the two are compared too. ONNX Runtime keeps copies of the weights, arranged as it likes: before each
chain a checksum of the weights says whether these are still the model's.
"""

from __future__ import annotations

import io
import os
import time
import warnings
import zlib
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fastddpm.engine.errors import EngineUnavailable
from fastddpm.engine.quantised import session
from fastddpm.network import Network, modules_of
from fastddpm.weights import Inventory

# torch traces into ONNX with the first.
PACKAGES = ("onnx", "onnxruntime")
OPSET = 20
SAME_OUTPUT = 1e-5
"""Largest difference from the module's output that is rounding, relative to the output's largest value where
that is above 1."""


def missing() -> str:
    """What is to be installed; empty if it is there."""
    absent = [package for package in PACKAGES if find_spec(package) is None]
    return f"{', '.join(absent)}, not installed here: pip install 'fastddpm[onnx]'" if absent else ""


class Session:
    """Stands for what a `Network` computes of a state at a time.

    Args:
        network: in float32 on the CPU.
    """

    work = "hand it over again"
    """What is done for a model that has changed."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._inventory = Inventory(modules_of(network.model))
        self._running: Running | None = None
        self._model: tuple[object, ...] | None = None
        self._surroundings: tuple[int, ...] = ()
        self._is_changed = False
        self._bytes = 0

    def refresh(self) -> None:
        """Lets go of what was handed over if the model, the threads or the process are others."""
        model, surroundings = self._model_now(), self._surroundings_now()
        if (model, surroundings) != (self._model, self._surroundings):
            self._running = None
        self._is_changed = self._model is not None and model != self._model
        self._model, self._surroundings = model, surroundings

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """As `Network.predict`; RuntimeWarning where the network is handed over once more.

        Raises:
            EngineUnavailable: it cannot be handed over, or ONNX Runtime computes something else.
        """
        inputs = self._network.arguments(x, time)
        if self._running is None:
            self._running = self._handed_over(inputs)
        return self._running(inputs)

    def memory(self) -> int:
        """Bytes of the network as handed over; ONNX Runtime's own buffers are not known."""
        return self._bytes

    def _handed_over(self, inputs: Sequence[Tensor]) -> Running:
        began = time.perf_counter()
        proto, running = self._arranged(traced(_Core(self._network), inputs), inputs)
        self._bytes = len(proto)
        if self._is_changed:
            warnings.warn(
                f"engine 'onnxruntime': the model has changed, and to {self.work} took "
                f"{time.perf_counter() - began:.1f} s; 'eager' and 'compile' read weights where they are",
                RuntimeWarning,
                stacklevel=2,
            )
        return running

    def _arranged(self, proto: bytes, inputs: Sequence[Tensor]) -> tuple[bytes, Running]:
        """The network as it is to run, of what was traced; held to the module."""
        running = started(proto)
        wanted, found = self._network.core(*inputs), running(inputs)
        off = float((found - wanted).abs().max() / max(1.0, float(wanted.abs().max())))
        if not off <= SAME_OUTPUT:  # NaN too
            raise EngineUnavailable(
                f"engine: ONNX Runtime gives other outputs than the model, by {off:.1e}; "
                f"{SAME_OUTPUT:.0e} is accepted: a model must compute the same of the same inputs, and take "
                "no decision by their values"
            )
        return proto, running

    def _surroundings_now(self) -> tuple[int, ...]:
        """What else a network that was handed over depends on: threads and process."""
        return torch.get_num_threads(), os.getpid()

    def _model_now(self) -> tuple[object, ...]:
        """Changes with the content of the weights, and with hooks and parts of the model."""
        self._inventory.look()
        content = checksum(map(_memory, self._inventory.tensors()))
        parts = hash(tuple(map(id, self._inventory.parts)))
        return content, parts, self._inventory.hooks()


class _Core(nn.Module):
    """What is traced: the computation of a network, and the modules whose weights are in it."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.held = nn.ModuleList(modules_of(network.model))
        self._compute = network.core

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._compute(*inputs)


def traced(module: nn.Module, inputs: Sequence[Tensor]) -> bytes:
    """The module in ONNX, for inputs of these shapes; those that it uses are named by their places.

    Raises:
        EngineUnavailable: torch cannot express it in ONNX; the message names the operator.
    """
    file = io.BytesIO()
    try:
        # torch prints the graph in which it met something.
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # of branches that a trace goes by: the outputs are compared
            # By a trace: a second for the model in the box, and the exporter of programs takes ten or more.
            torch.onnx.export(
                module.eval(),
                tuple(inputs),
                file,  # type: ignore[arg-type]  # said of the other exporter alone
                dynamo=False,
                opset_version=OPSET,
                verbose=False,
                input_names=[f"input_{place}" for place in range(len(inputs))],
            )
    except Exception as error:  # torch raises whatever it met inside the network
        raise EngineUnavailable(
            "engine: torch cannot express the model in ONNX, which this engine runs "
            f"({type(error).__name__}: {one_line(error)})"
        ) from error
    return file.getvalue()


def started(proto: bytes) -> Running:
    """ONNX Runtime with a network.

    Raises:
        EngineUnavailable: it refuses it.
    """
    try:
        return Running(proto)
    except Exception as error:  # it raises many kinds
        raise EngineUnavailable(f"engine: ONNX Runtime refuses the model ({one_line(error)})") from error


class Running:
    """ONNX Runtime, from the inputs' own memory into a buffer that stays.

    Args:
        proto: the network.
    """

    def __init__(self, proto: bytes) -> None:
        self._session = session(proto, torch.get_num_threads())
        self._names = [one.name for one in self._session.get_inputs()]  # of those that it uses
        (output,) = self._session.get_outputs()
        self._output = torch.empty(output.shape, dtype=torch.float32)
        self._binding = self._session.io_binding()
        place = (tuple(self._output.shape), self._output.data_ptr())
        self._binding.bind_output(output.name, "cpu", 0, "float32", *place)

    def __call__(self, inputs: Sequence[Tensor]) -> Tensor:
        """The output for inputs by place, in memory that the next call writes over."""
        for name in self._names:
            self._binding.bind_cpu_input(name, inputs[_place(name)].detach().contiguous().numpy())
        self._session.run_with_iobinding(self._binding)
        return self._output


def _place(name: str) -> int:
    return int(name.removeprefix("input_"))


def one_line(error: Exception) -> str:
    """What an error says, in one line of bounded length."""
    return " ".join(str(error).split())[:400]


def checksum(parts: Iterable[memoryview]) -> int:
    """Of bytes: by xxHash, as fast as memory is read, where it is installed, else a CRC of 32 bits."""
    try:
        import xxhash
    except ImportError:
        content = 0
        for part in parts:
            content = zlib.crc32(part, content)
        return content
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return state.intdigest()


def _memory(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, where they are if its elements lie side by side in some order."""
    plain = tensor.detach().cpu()
    if plain.is_contiguous(memory_format=torch.channels_last):
        plain = plain.permute(0, 2, 3, 1)
    array = plain.contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)  # type: ignore[arg-type]  # NumPy's stubs do not say that it is a buffer

"""What Inductor makes of a network for a card that is not there: the launches of its code, its kernels."""

from __future__ import annotations

import contextlib
import logging
import re
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fake_gpu import fake_card
from torch import Tensor, nn
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch._inductor.utils import get_code
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastddpm.engine.step import StepBuffers, StepCase
from fastddpm.network import Network
from fastddpm.tabulated import bind

CASE = StepCase((4, 3, 32, 32), clip=True)
STEP_LAUNCHES = 3
"""What a step launches around its network: its row of time, the reverse step, the counter's increment."""


@dataclass(frozen=True)
class Lowered:
    """Generated code.

    Attributes:
        code: the module that Inductor wrote.
        kernels: source of each Triton kernel that it generated, by name.
        triton: names of the Triton kernels it launches, in order, ours among them.
        library: counts of the library calls: convolutions, matrix products, attention.
        n_bytes: what all of them read and write, each operand once, as Inductor counts it.
    """

    code: str
    kernels: dict[str, str]
    triton: list[str]
    library: Counter[str]
    n_bytes: int

    @property
    def launches(self) -> int:
        return len(self.triton) + self.library.total()

    @property
    def attentions(self) -> int:
        return sum(n for name, n in self.library.items() if "scaled_dot_product" in name)

    @property
    def layout_copies(self) -> list[str]:
        """Launches of generated kernels that move a tensor and change neither value nor dtype."""
        copies = {name for name, source in self.kernels.items() if is_copy(source)}
        return [name for name in self.triton if name in copies]


def is_copy(source: str) -> bool:
    """Whether a generated kernel loads one tensor and stores it as it is."""
    body = source[source.index("def triton_") :]
    dtypes = set(re.findall(r"'(?:in|out)_ptr\d+': '(\*\w+)'", source))
    computed = [
        line
        for line in re.findall(r"^\s+tmp\d+ = (.*)$", body, re.M)
        if not re.match(r"tl\.load\(|tmp\d+(\.to\(tl\.\w+\))?$", line)
    ]
    return len(dtypes) == 1 and not computed and body.count("tl.load(") == 1


def read(code: str, n_bytes: int) -> Lowered:
    """The launches in the `call` function of a generated module."""
    # Its own are named triton_; others are ours, which proof a builds.
    pattern = r"^(triton_\w+) = async_compile\.triton\('\w+', '''(.*?)'''"
    kernels = dict(re.findall(pattern, code, re.S | re.M))
    body = code[code.index("def call(") :]
    triton = re.findall(r"^\s+(\w+)\.run\(", body, re.M)
    library = re.findall(r"(extern_kernels\.\w+|(?:torch\.ops\.|aten\.)_?[\w.]+)\(", body)
    return Lowered(code, kernels, triton, Counter(library), n_bytes)


def flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **options: Any,
) -> Tensor:
    """What attention in half precision dispatches to on sm_80; without a device torch chooses math."""
    assert attn_mask is None
    operator = torch.ops.aten._scaled_dot_product_flash_attention
    out: Tensor = operator(query, key, value, dropout_p, is_causal, scale=scale)[0]
    return out


def lower(make: Callable[[], nn.Module], monkeypatch: Any, target: str = "sm_90") -> Lowered:
    """A network as engine `max` compiles it, on a step's static buffers: bfloat16, channels_last."""
    model = make().to(torch.bfloat16).eval().to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    device = torch.device("cuda:0")
    with fake_card(target), torch.no_grad():
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            model = model.to(device)
            with device:
                buffers = StepBuffers(CASE, 10, device)
                network = bound(model, device)
                network.compile(fullgraph=True)
            with counted_bytes():
                code = get_code(network, buffers.x, buffers.counter[:, 0])
    [module] = [text for text in code if "def call(" in text and "async_compile" in text][:1]
    return read(module, metrics.num_bytes_accessed)


@contextlib.contextmanager
def counted_bytes() -> Iterator[None]:
    """Inductor counts bytes while its log of metrics is on, which is not shown."""
    log = inductor_metrics_log
    level, propagate = log.level, log.propagate
    metrics.reset()
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate


def bound(model: nn.Module, device: torch.device) -> Network:
    """The network as a loop on CUDA has it; others' than ours are as they are in any form."""
    return bind(
        model,
        cond={},
        device=device,
        dtype=torch.bfloat16,
        capacity=10,
        guided=False,
        time_dtype=torch.int64,
        condition=None,
        form="deferred",
    )


# Operators that launch nothing.
VIEWS = re.compile(
    r"::(view|permute|transpose|t|expand|slice|select|split|split_with_sizes|detach|as_strided|alias|unsqueeze|"
    r"_unsafe_view|_reshape_alias|empty\w*|new_empty\w*|chunk|squeeze|unbind|promote_types)(\.|$)|^prim::"
)


LIBRARY = re.compile(r"convolution|mm\b|attention")
"""Operators whose bytes nobody can do without: each reads and writes its maps, and its weights once."""


class Operators(TorchDispatchMode):
    """Names of the operators that launch something, and the bytes that each reads and writes once."""

    def __init__(self) -> None:
        super().__init__()
        self.launched: list[str] = []
        self.n_bytes: Counter[str] = Counter()

    @property
    def over_least(self) -> float:
        """All bytes, in those of the libraries' operators."""
        least = sum(count for name, count in self.n_bytes.items() if LIBRARY.search(name))
        return self.n_bytes.total() / least

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = operator.name()
        result = operator(*arguments, **(options or {}))
        same = name.startswith("aten::_to_copy") and arguments[0].dtype == result.dtype
        if not VIEWS.search(name) or same:
            self.launched.append(name)
            moved = [v for v in tree_leaves((arguments, options, result)) if isinstance(v, Tensor)]
            places = {(v.untyped_storage()._cdata, v.storage_offset(), v.shape): v for v in moved}
            self.n_bytes[name] += sum(v.numel() * v.element_size() for v in places.values())
        return result


def captured_operators(make: Callable[[], nn.Module], monkeypatch: Any, target: str = "sm_90") -> Operators:
    """The operators of a step's network as engine `cudagraph` captures it, a launch each.

    A convolution's bias is one more; the last has one.
    """
    model = make().to(torch.bfloat16).eval().to(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", flash)
    device = torch.device("cuda:0")
    with fake_card(target), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to(device)
        with device:
            buffers, network = StepBuffers(CASE, 10, device), bound(model, device)
            with Operators() as operators:
                network(buffers.x, buffers.counter[:, 0])
    return operators


def compile_kernel(name: str, source: str, folder: Path) -> Any:
    """A generated kernel compiled as Inductor would, the first of its configurations; within `fake_card`."""
    path = folder / f"{name}.py"
    path.write_text(source)
    module = types.ModuleType(name)
    module.__file__ = str(path)
    exec(compile(source, path, "exec"), module.__dict__)
    [kernel] = [value for value in vars(module).values() if hasattr(value, "_precompile_config")]
    return kernel._precompile_config(kernel.configs[0]).kernel

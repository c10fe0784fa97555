"""A pretended CUDA device of a given kind, enough for Dynamo, AOTAutograd and Inductor to lower for it.

Nothing is launched and no tensor has data: use it with fake tensors on "cuda". It patches private parts of
torch and Triton, and only this module does, so it names the torch version that it was written for; with
another one, `skip_unless_pinned` says loudly that the proofs which need it did not run.
"""

from __future__ import annotations

import contextlib
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch._inductor.utils as inductor_utils
import torch.utils._triton as torch_triton
from kernel_build import TARGETS, TargetDriver
from torch._dynamo.device_interface import CudaInterface
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime.driver import driver

PINNED_TORCH = "2.14"

CARDS = {
    "sm_80": {"name": "A100", "multiprocessors": 108, "shared": 163 << 10, "l2": 40 << 20},
    "sm_90": {"name": "H100", "multiprocessors": 132, "shared": 227 << 10, "l2": 50 << 20},
}
"""NVIDIA's published figures (CUDA programming guide and the cards' white papers)."""


def skip_unless_pinned() -> None:
    """Skips the calling module, with a warning in pytest's summary, if torch is not the pinned one."""
    reason = None
    if not torch.__version__.startswith(PINNED_TORCH + "."):
        reason = f"written for torch {PINNED_TORCH}, this is {torch.__version__}"
    elif torch.version.cuda is None:
        reason = "needs the CUDA build of torch (no card)"
    if reason is not None:
        warnings.warn(f"GPU PROOFS NOT RUN: {reason}", stacklevel=2)
        pytest.skip(f"GPU PROOFS NOT RUN: {reason}", allow_module_level=True)


class LoweringDriver(TargetDriver):
    """A Triton driver that Inductor can ask for what a device is, and that cannot launch."""

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_device(self) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.target.arch, 10)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def get_device_interface(self) -> Any:
        return torch.cuda

    def get_benchmarker(self) -> Any:
        # Of several configurations the first wins: nothing can be timed.
        return lambda function, quantiles=None, **options: [1.0, 1.0, 1.0]


class _OnCpu(TorchDispatchMode):
    """Makes tensors that were asked for on the device on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        args = [torch.device("cpu") if isinstance(arg, torch.device) else arg for arg in args]
        return func(*args, **kwargs)


@contextlib.contextmanager
def fake_card(target: str = "sm_90") -> Iterator[None]:
    """torch and Triton believe in a card of this kind; no cache of compiled code is read or written."""
    gpu_target = TARGETS[target]
    lowering_driver = LoweringDriver(gpu_target)
    before = driver._active
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        driver.set_active(lowering_driver)
        _patch_queries(patch, target)
        patch.setattr(triton_helpers, "set_driver_to_gpu", lambda: driver.set_active(lowering_driver))
        deduce = UniformValueConstantFolder._deduce_value

        def deduce_on_cpu(self, node):
            # It runs `aten.full(..., device="cuda")` to fold constants.
            with _OnCpu():
                return deduce(self, node)

        patch.setattr(UniformValueConstantFolder, "_deduce_value", deduce_on_cpu)
        patch.setattr(torch._C, "_conv_determine_backend_memory_format", _convolution_layout)
        # Padding of matrix products is chosen by timing them.
        options = {"shape_padding": False, "fx_graph_cache": False, "compile_threads": 1}
        # The launcher that Inductor builds itself keeps no binary.
        options |= {"autotune_local_cache": False, "use_static_triton_launcher": False}
        stack.enter_context(torch._inductor.config.patch(**options))
        stack.enter_context(torch._functorch.config.patch(enable_autograd_cache=False))
        _forget_devices()
        torch._dynamo.reset()
        try:
            yield
        finally:
            driver._active = before
            torch._dynamo.reset()
            _forget_devices()


def _convolution_layout(x: torch.Tensor, weight: torch.Tensor, backend: object) -> torch.memory_format:
    """The layout of a convolution's output by cuDNN, which torch does not choose where there is no device.

    ATen's `cudnn_conv_suggest_memory_format`: channels_last if the input or the weight is.
    """
    suggested = (torch._prims_common.suggest_memory_format(tensor) for tensor in (x, weight))
    is_channels_last = torch.channels_last in suggested
    return torch.channels_last if is_channels_last else torch.contiguous_format


def _patch_queries(patch: pytest.MonkeyPatch, target: str) -> None:
    """The questions that torch asks about the device, answered without one."""
    card = CARDS[target]
    capability = divmod(TARGETS[target].arch, 10)
    properties = types.SimpleNamespace(
        name=card["name"],
        major=capability[0],
        minor=capability[1],
        multi_processor_count=card["multiprocessors"],
        total_memory=80 << 30,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048,
        max_threads_per_block=1024,
        warp_size=32,
        L2_cache_size=card["l2"],
        shared_memory_per_block=48 << 10,
        shared_memory_per_block_optin=card["shared"],
        shared_memory_per_multiprocessor=card["shared"] + 1024,
        clock_rate=1980000,
        memory_clock_rate=2619000,
        memory_bus_width=5120,
    )
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "_lazy_init": lambda: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: capability,
        "get_device_name": lambda device=None: card["name"],
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: None,
        "set_device": lambda device: None,
        "is_current_stream_capturing": lambda: False,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "get_rng_state": lambda device="cuda": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device="cuda": None,
        "get_arch_list": lambda: [target],
    }
    for name, answer in answers.items():
        patch.setattr(torch.cuda, name, answer)
    for name in ("get_device_properties", "current_device", "device_count", "set_device", "synchronize"):
        patch.setattr(CudaInterface, name, staticmethod(answers[name]))
    for name in ("exchange_device", "maybe_exchange_device"):
        patch.setattr(CudaInterface, name, staticmethod(lambda device: 0))
    patch.setattr(CudaInterface, "get_raw_stream", staticmethod(lambda device: 0))
    patch.setattr(CudaInterface, "is_bf16_supported", staticmethod(lambda *args, **options: True))
    patch.setattr(CudaInterface.Worker, "get_device_properties", staticmethod(lambda device=None: properties))
    patch.setattr(CudaInterface.Worker, "current_device", staticmethod(lambda: 0))
    # Else Dynamo's tracking of streams asks the driver.
    patch.setattr(torch.accelerator, "is_available", lambda: False)
    patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
    # torch's own switch for exporting on a machine without a GPU, here on although CUDA seems available.
    patch.setattr(FakeTensorMode, "avoid_device_init", property(lambda self: True))


def _forget_devices() -> None:
    """What torch remembers about devices, and must not once they come or go."""
    DeviceProperties.create.cache_clear()
    for module in (torch_triton, inductor_utils):
        for function in vars(module).values():
            clear = getattr(function, "cache_clear", None)
            if callable(clear):
                clear()

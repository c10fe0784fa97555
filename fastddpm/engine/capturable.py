"""Whether a model can be captured in a CUDA graph, found out without one, and without a card.

`check_capturable` runs the model once, as a step runs it, on fake CUDA tensors: the real Python, shapes and
devices, no data. What a capture forbids shows there: values read on the host, tensors of the host among
those of the card, shapes that depend on values, generators of their own.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from fastddpm.checks import check_choice
from fastddpm.engine.watch import Offence, Watch
from fastddpm.facts import model_facts
from fastddpm.network import Model, in_eval_mode, model_device_dtype, modules_of
from fastddpm.plans.time_input import TIME_INPUTS, TimeInput
from fastddpm.tabulated import ModelInputs, bind

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclasses.dataclass(frozen=True)
class CaptureReport:
    """What `check_capturable` found.

    Attributes:
        offences: in the order in which they run; a host read ends the run, so more may follow it.
    """

    offences: tuple[Offence, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.offences

    def __str__(self) -> str:
        if self.ok:
            return "nothing found that a CUDA graph could not capture"
        return "\n".join(["a CUDA graph could not capture this model:", *map(str, self.offences)])


def check_capturable(
    model: Model,
    shape: Sequence[int],
    *,
    batch_size: int = 2,
    class_labels: bool | None = None,
    cond: Mapping[str, Tensor] | None = None,
    guided: bool = False,
    condition_channels: int = 0,
    time_input: TimeInput = "timestep",
    dtype: torch.dtype | None = None,
) -> CaptureReport:
    """Runs one prediction of a model on fake CUDA tensors and names what would break a capture.

    Its parameters and buffers are exchanged for fake ones meanwhile and put back, so nothing else may use the
    model at the time. Tensors that it holds otherwise stay where they are, as they would in ``model.to()``.

    Args:
        model: as `Sampler` takes it, on any device.
        shape: of one state, ``(C, H, W)`` of an image.
        batch_size: images.
        class_labels: give it ``class_labels``; None for our networks that have classes.
        cond: what it is given by name besides, ``(1, ...)`` each; only shapes and dtypes are used.
        guided: run it as classifier-free guidance does, on the doubled batch.
        condition_channels: channels of a condition image in front of x; 0 for none.
        time_input: what it takes as t, ``timestep``, ``noise_level`` or ``alphas_cumprod``.
        dtype: what it takes x in; None for its weights'.

    Returns:
        The report; ``report.ok``, ``report.offences``, ``print(report)``.

    Raises:
        ValueError: shape or time_input is none that is accepted.
        RuntimeError: this torch was built without CUDA, and has no fake CUDA tensors.
    """
    if not torch.version.cuda:
        raise RuntimeError(
            f"check_capturable: torch {torch.__version__} was built without CUDA; a CUDA build accepted, "
            "with or without a card"
        )
    facts = model_facts(model)
    facts.checked_shape(shape)
    check_choice("time_input", time_input, TIME_INPUTS)
    if class_labels is None:
        class_labels = bool(facts.takes_labels)
    device, dtype = torch.device("cuda"), dtype or model_device_dtype(model)[1]
    rows = batch_size * (2 if guided else 1)
    image = (rows, condition_channels, *tuple(shape)[1:])
    labels = {"class_labels": torch.zeros(rows, dtype=torch.int64)} if class_labels else {}
    given = {name: value[:1].expand(rows, *value.shape[1:]) for name, value in (cond or {}).items()}
    offences = run_on_fakes(
        model,
        (batch_size, *shape),
        device=device,
        dtype=dtype,
        guided=guided,
        time_dtype=torch.int64 if time_input == "timestep" else torch.float32,
        cond={**labels, **given},
        condition=torch.empty(image) if condition_channels else None,
    )
    return CaptureReport(tuple(offences))


def run_on_fakes(
    model: Model,
    shape: Sequence[int],
    *,
    passes: int = 1,
    device: torch.device,
    cond: Mapping[str, Tensor],
    condition: Tensor | None,
    **options: Unpack[ModelInputs],
) -> list[Offence]:
    """Runs a model as a step does, on fake CUDA tensors in the place of its weights.

    Args:
        model: as `Sampler` takes it.
        shape: ``(B, ...)`` of the state.
        passes: how often; what the last one does is told.
        device: a CUDA device.
        cond: see `fastddpm.network.Network`; only shapes and dtypes are used.
        condition: likewise.
        **options: further arguments of `fastddpm.tabulated.bind`.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.inference_mode(False), torch.no_grad():
        fake = functools.partial(torch.empty, device=device)
        x = fake(tuple(shape))
        given = {name: fake(tuple(value.shape), dtype=value.dtype) for name, value in cond.items()}
        image = None if condition is None else fake(tuple(condition.shape), dtype=condition.dtype)
        with in_eval_mode(model), on_fake_cuda(model), running_modules(model) as running:
            network = bind(model, device=device, capacity=4, cond=given, condition=image, **options)
            k = torch.zeros(len(x), dtype=torch.int64, device=device)
            for _ in range(passes):
                watch = Watch(running)
                running.clear()
                try:
                    with watch, synchronize_watched(watch):
                        network(x, k)
                except Exception as error:
                    watch.ended_by(error)
    return watch.offences


@contextmanager
def on_fake_cuda(model: Model) -> Iterator[None]:
    """A model's parameters and buffers as fake CUDA tensors, put back afterwards."""
    exchanged: list[tuple[dict[str, Any], str, Tensor]] = []
    try:
        for module in modules_of(model):
            for part in module.modules():
                holders: list[dict[str, Any]] = [part._parameters, part._buffers]
                for held in holders:
                    for name, value in held.items():
                        if value is None:
                            continue
                        fake = torch.empty_strided(
                            value.shape, value.stride(), dtype=value.dtype, device="cuda"
                        )
                        is_parameter = isinstance(value, nn.Parameter)
                        exchanged.append((held, name, value))
                        held[name] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake
        yield
    finally:
        for held, name, value in reversed(exchanged):
            held[name] = value


@contextmanager
def running_modules(model: Model) -> Iterator[list[str]]:
    """The paths of the submodules that run at the moment, outermost first."""
    names = {
        id(part): path or type(part).__name__
        for module in modules_of(model)
        for path, part in module.named_modules()
    }
    running: list[str] = []
    here = threading.get_ident()

    # The hooks are global: other threads' modules come here too.
    def enter(module: nn.Module, *_: object) -> None:
        if threading.get_ident() == here:
            running.append(names.get(id(module), type(module).__name__))

    def leave(*_: object) -> None:
        if threading.get_ident() == here:
            running.pop()

    with ExitStack() as hooks:
        hooks.callback(register_module_forward_pre_hook(enter).remove)
        hooks.callback(register_module_forward_hook(leave).remove)
        yield running


@contextmanager
def synchronize_watched(watch: Watch) -> Iterator[None]:
    """`torch.cuda.synchronize` notes an offence instead; it is no operator that a dispatch mode sees."""
    original, here = torch.cuda.synchronize, threading.get_ident()

    def noted(device: torch.types.Device = None) -> None:
        if threading.get_ident() != here:
            original(device)
            return
        watch.note("torch.cuda.synchronize", "it waits for the card")

    torch.cuda.synchronize = noted
    try:
        yield
    finally:
        torch.cuda.synchronize = original

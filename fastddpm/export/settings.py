"""What is exported: a sampler's network, schedule and options, checked, before any work is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastddpm.checks import BadArgument, check_choice, whole
from fastddpm.class_names import class_names
from fastddpm.conditions import checked_one
from fastddpm.export.call import Condition, NetworkCall
from fastddpm.export.network import plain_copy
from fastddpm.export.nodes import BOOL, FLOAT, INT32, INT64
from fastddpm.export.recognition import recognised
from fastddpm.export.table import TableOptions
from fastddpm.options import ExportOptions
from fastddpm.plans import Method
from fastddpm.plans.method_options import MethodOptions
from fastddpm.plans.scheduler import PRECONDITIONED
from fastddpm.sampler import Sampler
from fastddpm.schedule import NoiseSchedule
from fastddpm.unet import UNet
from fastddpm.unet1d import UNet1D

DTYPES = ("float32", "float16")
CONDITION_KINDS: dict[int, str] = {FLOAT: "float32", INT64: "int64", INT32: "int32", BOOL: "bool"}
"""ONNX's numbers of the dtypes that a condition may have, and their names in export.json."""
_KINDS = {torch.float32: FLOAT, torch.int64: INT64, torch.int32: INT32, torch.bool: BOOL}


@dataclass(frozen=True)
class ExportSettings:
    """What is exported.

    Attributes:
        sampler: the sampler in float32 on the CPU around a copy of the network: what the files are held to.
        call: how the network is called.
        method: how the sampler draws, unless told otherwise.
    """

    sampler: Sampler
    call: NetworkCall
    method: Method

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule."""
        return self.sampler.schedule

    @property
    def defaults(self) -> MethodOptions:
        """The method as JSON values; what the network is told is no default but fixed."""
        options = self.method.to_dict()
        del options["time_input"]
        return options

    @property
    def table(self) -> TableOptions:
        """What of the plans is fixed."""
        clip = self.method.clip
        return TableOptions(
            alphas_cumprod=self.schedule.alphas_cumprod,
            formula=self.method.formula_options,
            clip=math.inf if clip is None else clip,
        )

    @property
    def sizes(self) -> tuple[int, int] | None:
        """(multiple, padding): height and width plus the padding are multiples; None where they are fixed."""
        facts = self.sampler.facts
        return None if facts.size_multiple is None else (facts.size_multiple, facts.padding)


def resolve(
    model: nn.Module | Sampler,
    *,
    schedule: NoiseSchedule | None,
    shape: Sequence[int] | None,
    dtype: str,
    num_classes: int | None,
    condition_channels: int | None,
    cond: Mapping[str, Tensor] | None = None,
    options: ExportOptions,
) -> ExportSettings:
    """The settings for the arguments of `fastddpm.export_onnx`.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    check_choice("dtype", dtype, DTYPES)
    sampler = _sampler(model, schedule, options)
    network = sampler.model
    if not isinstance(network, nn.Module):
        raise BadArgument("model", type(network).__name__, "a torch.nn.Module")
    image = shape if shape is not None else sampler.shape
    if image is None:
        raise BadArgument("shape", "none, and no default of the sampler,", "(C, H, W)")
    sides = sampler.facts.checked_shape(image)
    plan = sampler.plan
    method = recognised(plan, sampler)
    preconditioned = method.scheduler is not None and method.fields["_class_name"] in PRECONDITIONED
    told_times = plan.model_time.dtype.kind == "f" and method.time_input == "timestep"
    classes = _num_classes(network, num_classes)
    null = sampler.facts.null_label
    if null is not None and classes is None:
        raise BadArgument("null_label", f"{null} with a network without classes", "None, or num_classes too,")
    call = NetworkCall(
        shape=sides,
        condition_channels=_condition_channels(network, sides[0], condition_channels),
        num_classes=classes,
        null_label=null,
        time_input=method.time_input,
        half=dtype == "float16",
        between=told_times and not preconditioned,
        cond=_conditions(sampler, cond or _observed(network), has_labels=classes is not None),
        preconditioned=preconditioned,
    )
    reference = Sampler.from_plan(
        plain_copy(network, torch.float32),
        sampler.schedule,
        plan,
        null_label=sampler.null_label,
        class_names=class_names(sampler.class_names, classes or 0),
        shape=sides,
        device="cpu",
        dtype=torch.float32,
        engine="eager",
    )
    return ExportSettings(reference, call, method)


def _sampler(model: nn.Module | Sampler, schedule: NoiseSchedule | None, options: ExportOptions) -> Sampler:
    if isinstance(model, Sampler):
        if schedule is not None:
            raise BadArgument("schedule", "one with a sampler, which has its own,", "None")
        return model.replace(**options) if options else model
    if schedule is None:
        raise BadArgument("schedule", "none", "the NoiseSchedule that the model was trained with")
    return Sampler(model, schedule, **options)


def _observed(network: nn.Module) -> dict[str, Tensor]:
    """An example of what a network of actions is told, which is one vector; none of another network."""
    if not isinstance(network, UNet1D) or not network.config.cond_dim:
        return {}
    generator = torch.Generator().manual_seed(0)
    return {"global_cond": torch.randn(1, network.config.cond_dim, generator=generator)}


def _conditions(sampler: Sampler, cond: Mapping[str, Tensor], *, has_labels: bool) -> tuple[Condition, ...]:
    """What the network is given by name, from examples.

    Raises:
        ValueError: naming the condition, what was given and what is accepted.
    """
    rows = {}
    for name, value in cond.items():
        count = len(value) if isinstance(value, Tensor) and value.ndim else 1
        host = torch.device("cpu")
        rows[name] = checked_one(f"cond[{name!r}]", value, count, host, torch.float32).contiguous()
        if rows[name].dtype not in _KINDS:
            raise BadArgument(f"cond[{name!r}]", str(rows[name].dtype), "floating, int64, int32 or bool rows")
    sampler.facts.check_names(rows, has_labels=has_labels)
    return tuple(Condition(name, _KINDS[value.dtype], value) for name, value in rows.items())


def _num_classes(network: nn.Module, given: int | None) -> int | None:
    if given is not None:
        whole("num_classes", given, least=1)
    if isinstance(network, UNet):
        own = network.config.num_classes
        if given not in (None, own):
            raise BadArgument("num_classes", f"{given} for a network of {own}", "None")
        return own
    config = getattr(network, "config", None)
    rows = config.get("num_class_embeds") if isinstance(config, Mapping) else None
    return given if given is not None else rows


def _condition_channels(network: nn.Module, channels: int, given: int | None) -> int:
    if given is not None:
        whole("condition_channels", given, least=0)
    config = getattr(network, "config", None)
    takes = config.get("in_channels") if isinstance(config, Mapping) else getattr(config, "in_channels", None)
    if takes is None:
        return given or 0
    if takes < channels or given not in (None, takes - channels):
        raise BadArgument(
            "shape, condition_channels",
            f"{channels} channels and {given} for a network that takes {takes} in all",
            "as many in all",
        )
    return int(takes) - channels

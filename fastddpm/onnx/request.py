"""What a caller of `OnnxSampler.sample` wants, checked before anything runs. NumPy in, NumPy out.

The same arguments, defaults and errors as `fastddpm.request`, without torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from fastddpm.checks import (
    BadArgument,
    check_choice,
    check_count,
    check_number,
    check_values,
    is_whole,
    quoted,
    seed_list,
    shown,
    whole,
)
from fastddpm.class_names import numbered
from fastddpm.onnx.folder import ModelFolder
from fastddpm.onnx.named import Numbers, named_inputs
from fastddpm.plans import Method, Plan
from fastddpm.plans.method_options import MethodName, MethodOptions
from fastddpm.plans.spacing import SIGMA_SPACINGS, Sigmas, Timesteps, TimestepSpacing

MAX_SEED = 2**63 - 1
OUTPUTS = ("float", "uint8")

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


class PlanOptions(TypedDict, total=False):
    """Of `OnnxSampler.sample`, those that its plan is made from; None for what was exported."""

    method: MethodName | None
    num_inference_steps: int | None
    timestep_spacing: TimestepSpacing | None
    timesteps: Timesteps | None
    sigmas: Sigmas | None
    eta: float | None
    solver_order: int | None


@dataclass(frozen=True)
class Request:
    """Images to draw in one run.

    Attributes:
        seeds: int64 [B].
        labels: int64 [B], or None for a network without classes.
        guidance_scale: w; 1 is none.
        condition: float32 [B, Cc, ...], as the state but for its channels, or None.
        named: inputs ``cond_NAME`` and, where the files guide, ``uncond_NAME``, [B, ...] each.
    """

    seeds: Int64
    labels: Int64 | None
    guidance_scale: float
    condition: Float32 | None
    named: Mapping[str, Numbers] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.seeds)

    def rows(self, start: int, stop: int) -> Request:
        """Some of the images; past the last one, the last one again."""
        index = np.minimum(np.arange(start, stop), len(self) - 1)
        labels = None if self.labels is None else self.labels[index]
        condition = None if self.condition is None else self.condition[index]
        named = {name: np.ascontiguousarray(array[index]) for name, array in self.named.items()}
        return Request(self.seeds[index], labels, self.guidance_scale, condition, named)


def resolved_plan(folder: ModelFolder, given: PlanOptions) -> tuple[Method, Plan]:
    """The method and the plan of what was given (None is not), over what the folder was exported with.

    See `Method.adapted`.

    Raises:
        ValueError: a name that is no option of a method, or a value that is not accepted; a plan with times
            that the network cannot be told.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    method = folder.method.adapted(**cast("MethodOptions", changes))
    plan = method.plan(folder.schedule)
    is_between = plan.model_time.dtype.kind == "f" and method.time_input == "timestep"
    if is_between and not folder.times_between:
        name = "timestep_spacing" if method.timestep_spacing in SIGMA_SPACINGS else "method"
        name = "sigmas" if method.sigmas is not None else name
        raise BadArgument(
            name,
            f"{quoted(getattr(method, name))}, which tells the network times between two of training, to an "
            "export whose network takes whole ones,",
            "another, or an export of a sampler that has it,",
        )
    return method, plan


def make_request(
    folder: ModelFolder,
    *,
    batch_size: int | None,
    seeds: Sequence[int] | npt.ArrayLike | None,
    class_labels: int | str | Sequence[int | str] | npt.ArrayLike | None,
    guidance_scale: float,
    condition: Float32 | None,
    cond: Mapping[str, Numbers] | None = None,
    uncond: Mapping[str, Numbers] | None = None,
) -> Request:
    """All images asked for; arguments as of `OnnxSampler.sample`.

    Raises:
        ValueError: naming the argument, what was given and what is accepted.
    """
    size = None if batch_size is None else whole("batch_size", batch_size, least=1)
    if seeds is None:
        drawn = np.random.default_rng().integers(0, MAX_SEED, 1 if size is None else size, dtype=np.int64)
    else:
        drawn = np.array(seed_list(seeds), dtype=np.int64)
    if size not in (None, len(drawn)):
        raise BadArgument("batch_size, seeds", f"{size}, {len(drawn)} images", "one count")
    scale = _guidance(folder, guidance_scale)
    labels = _labels(folder, class_labels, len(drawn), guided=scale != 1.0)
    named = named_inputs(folder, cond, uncond, len(drawn), guided=scale != 1.0)
    return Request(drawn, labels, scale, _condition(folder, condition, len(drawn)), named)


def check_output(folder: ModelFolder, output: str) -> None:
    """ValueError unless it is "float", or "uint8" for images."""
    check_choice("output", output, OUTPUTS)
    if output == "uint8" and not folder.draws_images:
        given = f"{output!r} for states of shape {folder.image_shape}, which are no images,"
        raise BadArgument("output", given, "float")


def to_uint8(images: Float32) -> npt.NDArray[np.uint8]:
    """[B, C, H, W] -> uint8 [B, H, W, C], half to even; values outside [-1, 1] are clamped, NaN refused."""
    if np.isnan(images).any():
        raise BadArgument("images", "NaN among the values", "numbers")
    levels = np.rint((np.clip(images, -1.0, 1.0) + np.float32(1.0)) * np.float32(127.5))
    return np.ascontiguousarray(levels.transpose(0, 2, 3, 1)).astype(np.uint8)


def _guidance(folder: ModelFolder, scale: float | npt.NDArray[np.generic]) -> float:
    given = scale.item() if isinstance(scale, np.ndarray) and not scale.ndim else scale
    number = check_number("guidance_scale", given)
    if number != 1 and not folder.guides:
        raise BadArgument("guidance_scale", f"{given!r} to a network without a null label", "1")
    return number


def _labels(folder: ModelFolder, class_labels: Any, count: int, *, guided: bool) -> Int64 | None:
    classes, null = folder.num_classes, folder.null_label
    if classes is None:
        if class_labels is not None:
            raise BadArgument("class_labels", f"{class_labels!r} to a network without classes", "None")
        return None
    accepted = f"0 to {classes - 1}" + (f", {null} for none," if null is not None else "")
    if class_labels is None:
        if guided and not folder.cond:
            raise BadArgument("guidance_scale", "a number other than 1 without class_labels", "1, or labels,")
        if null is None:
            raise BadArgument("class_labels", "None", f"labels from {accepted}")
        return np.full(count, null, dtype=np.int64)
    class_labels = numbered(class_labels, folder.class_names)
    if getattr(class_labels, "ndim", 0) > 1:
        raise BadArgument("class_labels", f"shape {tuple(class_labels.shape)}", f"one label or ({count},)")
    values = class_labels.tolist() if hasattr(class_labels, "tolist") else class_labels
    values = list(values) if isinstance(values, Sequence) or hasattr(values, "__iter__") else [values] * count
    check_count("class_labels", len(values), count, accepted="one for all, or one each,")
    for value in values:
        if not is_whole(value) or not (0 <= value < classes or value == null):
            raise BadArgument("class_labels", repr(value), f"integers from {accepted}")
    return np.array(values, dtype=np.int64)


def _condition(folder: ModelFolder, condition: object, count: int) -> Float32 | None:
    wanted = folder.condition_shape
    if not folder.condition_channels:
        if condition is not None:
            raise BadArgument("condition", "one to a network that takes none", "None")
        return None
    accepted = f"a float32 array ({', '.join(map(str, (f'{count} or 1', *wanted)))})"
    if not isinstance(condition, np.ndarray):
        raise BadArgument("condition", shown(condition), accepted)
    shape = condition.shape
    fits = len(shape) > 1 and shape[0] in (1, count) and shape[1:] == wanted
    if condition.dtype != np.float32 or not fits:
        raise BadArgument("condition", f"{condition.dtype} of shape {shape}", accepted)
    check_values("condition", condition)
    return np.broadcast_to(condition, (count, *shape[1:]))

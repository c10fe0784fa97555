"""Arguments for the kernels, small and awkward, and what float64 makes of them.

Both the kernels on a device and those in Triton's interpreter are held against these.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias, TypedDict

import torch
from torch import Tensor

from fastddpm_kernels import N_COLUMNS, Column
from fastddpm_kernels.noise import reference as noise_spec
from fastddpm_kernels.q_sample import reference as q_sample_reference
from fastddpm_kernels.reverse_step import reference as step_reference

Arguments: TypeAlias = dict[str, Any]
"""Keyword arguments of a public function of the kernels."""
STEP_LIMIT = 4e-6
"""Of float32 results up to about 10 in size against float64."""

K, REPEAT = 3, 5
ROW = {
    "x0_from_x": 1.3,
    "x0_from_m": -0.75,
    "x0_bound": 1.0,
    "from_x0": 0.35,
    "from_x": 0.62,
    "from_m": 0.11,
    "from_kept_1": -0.23,
    "from_noise": 0.41,
    "log_var_min": -3.2,
    "log_var_max": -0.7,
    "linear_x": 1.3 * 0.35 + 0.62,
    "linear_m": -0.75 * 0.35 + 0.11,
    "x0_divisor": 0.9,
    "eps_from_x0": -0.57,
    "eps_from_m": 0.21,
    "eps_divisor": 1.1,
    "from_kept_2": 0.17,
    "from_kept_3": -0.08,
    "kept_from_x0": -0.4,
    "kept_from_x": 1.2,
    "kept_from_m": 0.3,
    "kept_slot": 0,
}


class Variant(TypedDict, total=False):
    """How a case of `reverse_step` differs from the plain one."""

    clip: bool
    dtype: torch.dtype
    channels_last: bool
    noisy: bool
    kept: int
    combine: bool
    guided: bool
    learned_range: bool
    thresholded: bool
    divide: bool
    rederive: bool


STEPS: dict[str, Variant] = {
    "linear": {},
    "clip": {"clip": True},
    "clip, bfloat16": {"clip": True, "dtype": torch.bfloat16},
    "clip, channels_last": {"clip": True, "channels_last": True},
    "deterministic": {"clip": True, "noisy": False},
    "2M": {"clip": True, "noisy": False, "kept": 1},
    "three kept": {"noisy": False, "kept": 3, "combine": True},
    "guidance": {"clip": True, "guided": True},
    "learned range": {"clip": True, "learned_range": True},
    "threshold": {"thresholded": True},
    "divisions": {"clip": True, "divide": True, "rederive": True},
}
SHAPES = ((3, 32, 32), (3, 11, 1))
"""Three colours of an image, and samples whose rows are not aligned."""

SEEDS = (0, 2**32 + 5, 2**63 - 1)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kernel's arguments on the CPU, and the float64 result of the tensors that it writes.

    Attributes:
        name: operator and case.
        operator: ``reverse_step``, ``q_sample``, ``group_norm_silu`` or ``noise_mse``.
        arguments: keyword arguments of the public function.
        expected: float64: x_next, and x0 where it is written; or x_t.
    """

    name: str
    operator: str
    arguments: Arguments
    expected: list[Tensor]


def cases(shape: tuple[int, int, int]) -> list[Case]:
    """Every case, with samples of this shape."""
    steps = [step_case(name, shape) for name in STEPS]
    return steps + [q_sample_case(shape, drawn=drawn) for drawn in (True, False)]


def step_case(name: str, shape: tuple[int, int, int]) -> Case:
    """A case of `reverse_step`."""
    options, batch = STEPS[name], len(SEEDS)
    kept = options.get("kept", 0)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *shape, generator=generator)
    rows = batch * (2 if options.get("guided") else 1)
    channels = shape[0] * (2 if options.get("learned_range") else 1)
    m = torch.randn(rows, channels, *shape[1:], generator=generator).to(options.get("dtype", torch.float32))
    if options.get("channels_last"):
        m = m.to(memory_format=torch.channels_last)
    table = torch.full((K + 2, N_COLUMNS), torch.nan)
    table[K] = 0
    for column, value in ROW.items():
        table[K, Column[column.upper()]] = value
    arguments: Arguments = {
        "x": x,
        "m": m,
        "table": table,
        "counter": torch.tensor([[K, REPEAT]]).repeat(batch, 1),
        "noise": torch.tensor(SEEDS) if options.get("noisy", True) else None,
        "x0": torch.zeros(batch, *shape) if kept else None,
        "guidance": torch.tensor([1.5, 0.0, 4.0]) if options.get("guided") else None,
        "threshold": torch.tensor([1.2, 0.7, 2.0]) if options.get("thresholded") else None,
        "kept": torch.randn(kept, batch, *shape, generator=generator) if kept else None,
        "base": None,
        "clip": options.get("clip", False),
        "combine": options.get("combine", False),
        "divide": options.get("divide", False),
        "rederive": options.get("rederive", False),
    }
    return Case(f"reverse_step, {name}, {_words(shape)}", "reverse_step", arguments, _float64_step(arguments))


def _float64_step(arguments: Arguments) -> list[Tensor]:
    """The formula in float64, with the NumPy noise in a ring of one slot."""
    wide: Arguments = {name: _double(value) for name, value in arguments.items()}
    if arguments["noise"] is not None:
        drawn = noise_spec.normal(arguments["noise"].numpy(), K + 1, wide["x"].shape[1:], repeat=REPEAT)
        wide["noise"] = torch.from_numpy(drawn)[None]
    step_reference.reverse_step(step_reference.Arguments(**wide))
    return written(wide)


def written(arguments: Arguments) -> list[Tensor]:
    """Of a step's arguments, what it writes."""
    return [arguments[name] for name in ("x", "x0", "kept") if arguments[name] is not None]


def _double(value: object) -> object:
    """A copy in float64 of a floating tensor; anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def q_sample_case(shape: tuple[int, int, int], *, drawn: bool) -> Case:
    """A case of `q_sample`: noise drawn in the kernel, or given."""
    batch = len(SEEDS)
    generator = torch.Generator().manual_seed(2)
    x_0 = torch.randn(batch, *shape, generator=generator)
    noise = torch.randn(batch, *shape, generator=generator)
    signal = torch.linspace(0.99, 0.1, 10).sqrt()
    sigma = (1 - signal.square()).sqrt()
    t, ordinals = torch.tensor([9, 0, 5]), torch.tensor([7, 2**32 - 1, 3 * 2**32 + 7])
    arguments: Arguments = {
        "x_0": x_0,
        "t": t,
        "sqrt_alphas_cumprod": signal,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "noise": None if drawn else noise,
        "seeds": torch.tensor(SEEDS) if drawn else None,
        "ordinals": ordinals if drawn else None,
    }
    if drawn:
        numbers = noise_spec.normal(SEEDS, ordinals.numpy(), shape, stream=1, repeat=ordinals.numpy() >> 32)
        noise = torch.from_numpy(numbers)
    wide = q_sample_reference.Arguments(
        x_0.double(), t, signal.double(), sigma.double(), noise=noise.double()
    )
    expected, _ = q_sample_reference.q_sample(wide)
    kind = "drawn" if drawn else "given"
    return Case(f"q_sample, noise {kind}, {_words(shape)}", "q_sample", arguments, [expected])


def error(case: Case, written: list[Tensor]) -> float:
    """Largest absolute difference of the tensors that a kernel wrote from what was expected; NaN is kept."""
    pairs = zip(written, case.expected, strict=True)
    return max(float((ours.cpu().double() - expected).abs().max()) for ours, expected in pairs)


def on(device: torch.device, arguments: Arguments) -> Arguments:
    """The same arguments in new memory on a device, their layouts kept."""
    return {
        name: value.clone().to(device) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }


def _words(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))

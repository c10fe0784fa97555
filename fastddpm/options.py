"""The keyword arguments that several public functions have in common, each with its type.

Functions that pass such arguments on take ``**options: Unpack[...]`` of these, so that editors and type
checkers know the names. What they mean stands in `fastddpm.Sampler` and `Sampler.sample`, which check them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from fastddpm.plans.method_options import MethodOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fastddpm.conditions import Conditions, Labels
    from fastddpm.engine import Engine
    from fastddpm.precision import Precision
    from fastddpm.randomness import NoiseKind


class ExportOptions(MethodOptions, total=False):
    """Of a sampler, those that an export keeps."""

    null_label: int | None
    class_names: Sequence[str] | None


class ChainOptions(TypedDict, total=False):
    """Of a sampler, those that neither its method has nor its weights."""

    null_label: int | None
    class_names: Sequence[str] | None
    shape: Sequence[int] | None
    precision: Precision | None
    engine: Engine
    steps_per_graph: int | None


class RunOptions(ChainOptions, total=False):
    """Of a sampler, those that a given plan leaves open."""

    device: torch.device | str | None
    dtype: torch.dtype | None


class SamplerOptions(MethodOptions, RunOptions, total=False):
    """Of `fastddpm.Sampler`; as JSON values, the content of a sampler.json."""


class ModelOptions(MethodOptions, ChainOptions, total=False):
    """Of a sampler, those that replace a model folder's: all but where its weights are, and in what dtype."""


class HubOptions(TypedDict, total=False):
    """Of `fastddpm.load`, for a source on the Hugging Face Hub."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


class SourceOptions(ChainOptions, HubOptions, total=False):
    """Of `fastddpm.load`, without a method's."""

    format: str
    config: Mapping[str, object] | str | Path | None
    ema: bool
    variant: str | None
    device: str | torch.device
    dtype: torch.dtype


class LoadOptions(SourceOptions, MethodOptions, total=False):
    """Of `fastddpm.load`."""


class ConditionArguments(TypedDict, total=False):
    """Of `Sampler.sample`: what is drawn, and how many at a time."""

    class_labels: Labels | None
    guidance_scale: float
    condition: Tensor | None
    cond: Conditions | None
    uncond: Conditions | None
    max_batch: int | None


class SampleArguments(ConditionArguments, total=False):
    """Of `Sampler.sample`: those that `sample_trajectory` and `sample_from` pass on."""

    seeds: Sequence[int] | Tensor | None
    shape: Sequence[int] | None
    known: Tensor | None
    known_mask: Tensor | None
    noise: NoiseKind
    generator: torch.Generator | Sequence[torch.Generator] | None

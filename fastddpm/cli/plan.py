"""Options that say how a chain is sampled, of the commands that have them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeAlias, cast

import typer

from fastddpm.cli.options import Sets
from fastddpm.plans.method_options import MethodOptions
from fastddpm.sampler import Sampler

Name: TypeAlias = Annotated[
    str | None, typer.Option(help="ddpm, ddim, dpmpp_2m, unipc, heun or another; docs/math.md has them.")
]
Steps: TypeAlias = Annotated[
    int | None, typer.Option(help="Inference steps, 1 to T."), Sets("num_inference_steps")
]
Spacing: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of the steps: leading, linspace or trailing; of solvers also karras or log_snr."),
    Sets("timestep_spacing"),
]
Timesteps: TypeAlias = Annotated[
    str | None, typer.Option(help="In the place of a spacing: 999,700,300, or a file of them.")
]
Sigmas: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Of a solver, noise levels in the place of a spacing: 14.6,2.7,0.4, or a file."),
]
Order: TypeAlias = Annotated[
    int | None, typer.Option(help="Of a solver that can have several."), Sets("solver_order")
]
Eta: TypeAlias = Annotated[
    float | None, typer.Option(help="Noise of ddim, heun, tcd, sa_solver: 0 none, 1 the most.")
]
LowerOrderFinal: TypeAlias = Annotated[
    bool | None, typer.Option(help="Of a multistep solver: the last steps are of a lower order.")
]
Thresholding: TypeAlias = Annotated[
    bool | None, typer.Option(help="Dynamic thresholding of the predicted image, in the place of a clip.")
]
ThresholdingRatio: TypeAlias = Annotated[
    float | None, typer.Option(help="Of thresholding: which quantile of |x0| is the bound, 0 to 1.")
]
MaxValue: TypeAlias = Annotated[
    float | None, typer.Option(help="Of thresholding: the most that the bound can be, 1 or more.")
]


def adapted(sampler: Sampler, given: Mapping[str, object]) -> MethodOptions:
    """What was given, and what goes with it where it is another method than the folder's."""
    assert sampler.method is not None
    # As typed; `Sampler` checks them.
    changes = cast("MethodOptions", {name: value for name, value in given.items() if value is not None})
    return sampler.method.adapted(**changes).to_dict()

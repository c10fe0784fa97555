"""`fastddpm export`: a model folder, or the model in the box, as ONNX files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from fastddpm.checkpoint import load
from fastddpm.checks import BadArgument
from fastddpm.cli import lists, plan
from fastddpm.cli.arguments import parse_shape
from fastddpm.cli.options import Sets


def export(
    model: Annotated[str, typer.Argument(help="Model folder, or mnist: the model in the box.")] = "mnist",
    out: Annotated[Path | None, typer.Option(help="Folder for the ONNX files."), Sets("folder")] = None,
    triton_repository: Annotated[
        Path | None,
        typer.Option(help="Repository of NVIDIA Triton Inference Server, for a model there."),
        Sets("repository"),
    ] = None,
    triton_name: Annotated[
        str | None, typer.Option(help="Of that model; left out: the model folder's."), Sets("name")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the network inside: float32 or float16.")] = "float32",
    shape: Annotated[
        str | None, typer.Option(help="Of an image, C,H,W; that of the model folder, if left out.")
    ] = None,
    method: plan.Name = None,
    steps: plan.Steps = None,
    spacing: plan.Spacing = None,
    timesteps: plan.Timesteps = None,
    sigmas: plan.Sigmas = None,
    order: plan.Order = None,
    eta: plan.Eta = None,
    lower_order_final: plan.LowerOrderFinal = None,
    verify: Annotated[
        bool, typer.Option(help="Compare the files with PyTorch; failing, none is left.")
    ] = True,
) -> None:
    """Write a trained model as ONNX: the network, one step, and the whole sampler in one file.

    The files draw as the model's folder says, or as the method and its options here; and as whoever runs them
    asks. With --triton-repository, the sampler goes there, in the place of --out or beside it.
    """
    if out is None and triton_repository is None:
        raise BadArgument("--out, --triton-repository", "neither", "one of them, or both,")
    if triton_name is not None and triton_repository is None:
        raise BadArgument("--triton-name", f"{triton_name!r} without --triton-repository", "none")
    from fastddpm.export import export_onnx, export_triton

    image = None if shape is None else parse_shape(shape)
    sampler = load(model)
    steps_of_it: dict[str, object] = {"method": method, "num_inference_steps": steps, "eta": eta}
    steps_of_it |= {"timestep_spacing": spacing, "solver_order": order}
    steps_of_it |= {"timesteps": lists.integers(timesteps, "--timesteps")}
    steps_of_it |= {"sigmas": lists.floats(sigmas, "--sigmas")}
    steps_of_it |= {"lower_order_final": lower_order_final}
    options = plan.adapted(sampler, steps_of_it)
    chosen = sampler.replace(**options)
    if triton_repository is not None:
        name = re.sub(r"[^A-Za-z0-9._-]", "_", Path(model).name) if triton_name is None else triton_name
        placed = export_triton(chosen, triton_repository, name, shape=image, dtype=dtype, verify=verify)
        print(f"{placed}: a model of Triton Inference Server")
    if out is None:
        return
    folder = export_onnx(chosen, out, shape=image, dtype=dtype, verify=verify)
    about = json.loads((folder / "export.json").read_text())
    for name, file in about["files"].items():
        measured = (about["parity"] or {}).get(name)
        checked = "not verified" if measured is None else f"{measured['max_abs_error']:.1e} from PyTorch"
        print(f"{folder / name}: {file['bytes'] / 1e6:.2f} MB, {checked}")

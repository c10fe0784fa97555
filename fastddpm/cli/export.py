"""`fastddpm export`: a model folder, or the model in the box, as ONNX files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastddpm.checkpoint import load
from fastddpm.cli import plan
from fastddpm.cli.arguments import parse_shape
from fastddpm.cli.options import Sets


def export(
    model: Annotated[str, typer.Argument(help="Model folder, or mnist: the model in the box.")] = "mnist",
    out: Annotated[Path, typer.Option(help="Folder for the ONNX files."), Sets("folder")] = ...,  # type: ignore[assignment]
    dtype: Annotated[str, typer.Option(help="Of the network inside: float32 or float16.")] = "float32",
    shape: Annotated[
        str | None, typer.Option(help="Of an image, C,H,W; that of the model folder, if left out.")
    ] = None,
    method: plan.Name = None,
    steps: plan.Steps = None,
    spacing: plan.Spacing = None,
    order: plan.Order = None,
    eta: plan.Eta = None,
    verify: Annotated[
        bool, typer.Option(help="Compare the files with PyTorch; failing, none is left.")
    ] = True,
) -> None:
    """Write a trained model as ONNX: the network, one step, and the whole sampler in one file.

    The files draw as the model's folder says, or as the method and its options here; and as whoever runs them
    asks.
    """
    from fastddpm.export import export_onnx

    image = None if shape is None else parse_shape(shape)
    sampler = load(model)
    steps_of_it: dict[str, object] = {"method": method, "num_inference_steps": steps, "eta": eta}
    steps_of_it |= {"timestep_spacing": spacing, "solver_order": order}
    options = plan.adapted(sampler, steps_of_it)
    folder = export_onnx(sampler.replace(**options), out, shape=image, dtype=dtype, verify=verify)
    about = json.loads((folder / "export.json").read_text())
    for name, file in about["files"].items():
        measured = (about["parity"] or {}).get(name)
        checked = "not verified" if measured is None else f"{measured['max_abs_error']:.1e} from PyTorch"
        print(f"{folder / name}: {file['bytes'] / 1e6:.2f} MB, {checked}")

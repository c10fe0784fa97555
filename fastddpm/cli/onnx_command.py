"""`fastddpm-onnx`, the command of the distribution without torch: `fastddpm sample --backend onnx` by itself.

Its options and files are that command's; the standard library reads them, since Typer is not among what that
distribution needs. `--help` and `--version` load neither numpy nor ONNX Runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import fastddpm

if TYPE_CHECKING:
    from fastddpm.onnx.request import PlanOptions

NAME = "fastddpm-onnx"
PLAN = ("method", "num_inference_steps", "timestep_spacing", "timesteps", "sigmas", "solver_order", "eta")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Says it, without the usage, and exits with code 2."""
        self.exit(2, f"{NAME}: error: {message}; {self.prog} --help lists what is accepted\n")


def parser() -> Parser:
    """What the command takes. Options are kept by the names of the arguments that they set."""
    top = Parser(NAME, description="Draws images from exported models, by ONNX Runtime, without PyTorch.")
    top.add_argument("--version", action="version", version=f"{NAME} {fastddpm.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    said = "Draw images from a folder of `fastddpm export`, one per seed."
    sample = commands.add_parser("sample", help=said, description=said, allow_abbrev=False)
    sample.add_argument("folder", metavar="FOLDER", help="Written by `fastddpm export`.")
    add = sample.add_argument
    add("--seeds", metavar="RANGES", default="0-63", help="Seeds, one image each: 0-9,20. Default: 0-63.")
    classes = "Class, or classes taken in turn by seed: cat,dog or 0-4,7. All, if left out."
    add("--class", dest="class_labels", metavar="CLASSES", help=classes)
    add("--method", help="ddpm, ddim, dpmpp_2m, unipc, ...; here and below what was exported, if left out.")
    add("--steps", dest="num_inference_steps", metavar="N", type=int, help="Steps.")
    spacing = "leading, linspace or trailing; of solvers also karras, log_snr or beta."
    add("--spacing", dest="timestep_spacing", help=spacing)
    add("--timesteps", metavar="LIST", help="In the place of a spacing: 999,700,300, or a file of them.")
    levels = "Of a solver, noise levels in the place of a spacing: 14.6,2.7,0.4, or a file of them."
    add("--sigmas", metavar="LIST", help=levels)
    add("--order", dest="solver_order", metavar="N", type=int, help="Of a solver that can have several.")
    add("--eta", type=float, help="Of ddim, in [0, 1].")
    guidance = "Classifier-free guidance scale; 1 is none."
    add("--guidance", dest="guidance_scale", metavar="SCALE", type=float, default=1.0, help=guidance)
    add("--batch", dest="max_batch", metavar="N", type=int, default=64, help="Images at a time; 64.")
    add("--out", type=Path, help="A grid (.png) or arrays (.npz); samples.png without --outdir.")
    add("--outdir", type=Path, help="Folder for one PNG a seed.")
    add("--device", help="cpu, cuda or cuda:N; CUDA where ONNX Runtime has it, if left out.")
    options = {action.dest: action.option_strings[0] for action in sample._actions if action.option_strings}
    sample.set_defaults(options=options)
    return top


def main() -> None:
    """Runs the command line and exits: errors are one line, exit code 2."""
    given = parser().parse_args()
    from fastddpm.checks import BadArgument
    from fastddpm.cli import terminal

    def called() -> None:
        try:
            _sample(given)
        except BadArgument as error:  # which names arguments; here they are options
            names = [given.options.get(name, name) for name in error.argument.split(", ")]
            raise BadArgument(", ".join(names), error.given, error.accepted) from error

    terminal.run(called, NAME)


def _sample(given: argparse.Namespace) -> None:
    from fastddpm.cli import lists
    from fastddpm.cli.outputs import Outputs
    from fastddpm.cli.ranges import parse_seeds
    from fastddpm.cli.sample_onnx import sample_onnx
    from fastddpm.extras import needed

    out = Path("samples.png") if given.out is None and given.outdir is None else given.out
    if given.outdir is not None or out.suffix.lower() == ".png":
        needed("PIL", by="a PNG file")
    plan: PlanOptions = {name: getattr(given, name) for name in PLAN}  # type: ignore[assignment]
    plan["timesteps"] = lists.integers(given.timesteps, "--timesteps")
    plan["sigmas"] = lists.floats(given.sigmas, "--sigmas")
    sample_onnx(
        given.folder,
        Outputs(out, given.outdir, None),
        parse_seeds(given.seeds),
        classes=given.class_labels,
        device=given.device,
        guidance=given.guidance_scale,
        batch=given.max_batch,
        plan=plan,
        by=NAME,
    )


if __name__ == "__main__":
    main()

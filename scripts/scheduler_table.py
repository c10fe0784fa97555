"""Which schedulers of the installed diffusers are drop-ins where: the table of docs/dropin.md.

Every scheduler is put into a tiny pipeline of each kind, and `optimize` is asked for what it makes of it.

    python scripts/scheduler_table.py           prints the table
    python scripts/scheduler_table.py --write   puts it into docs/dropin.md
"""

from __future__ import annotations

import argparse
import inspect
import warnings
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

import fastddpm
from fastddpm.dropin._diffusers.scheduler_kinds import KINDS

DOCUMENT = Path(__file__).parents[1] / "docs" / "dropin.md"
BEGIN, END = "<!-- schedulers: begin -->", "<!-- schedulers: end -->"
OTHERS = (
    "LCMScheduler",
    "TCDScheduler",
    "SASolverScheduler",
    "EDMDPMSolverMultistepScheduler",
    "IPNDMScheduler",
    "CMStochasticIterativeScheduler",
    "UnCLIPScheduler",
    "RePaintScheduler",
    "ScoreSdeVeScheduler",
    "KarrasVeScheduler",
    "DDIMInverseScheduler",
    "DPMSolverMultistepInverseScheduler",
)
"""Of pixels, of distilled models and of the way back, beside those that diffusers calls interchangeable."""
EXPLODING = ("ScoreSdeVeScheduler", "KarrasVeScheduler")
LEFT_OUT = ("DPMSolverSDEScheduler",)
"""Made with torchsde alone; refused everywhere, as the page says."""
OPTIONS = {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True}
"""As Stable Diffusion's folders have them."""
SMALL: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (4, 8), "norm_num_groups": 2}
STEPS = 8


def scheduler(name: str) -> Any:
    """One of a class, with the options that it takes."""
    kind: Any = getattr(diffusers, name)
    known = inspect.signature(kind.__init__).parameters
    return kind(**{key: value for key, value in OPTIONS.items() if key in known})


def pipelines() -> dict[str, Any]:
    """One of each kind, by the heads of the table; without texts, which say nothing of schedulers."""
    plain = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, **SMALL}
    pixels, wide = (
        diffusers.UNet2DModel(sample_size=8, in_channels=channels, out_channels=3, **plain)
        for channels in (3, 6)
    )
    texts = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        mid_block_type=None,
        cross_attention_dim=8,
        **SMALL,
    )
    transformer = diffusers.DiTTransformer2DModel(
        sample_size=8, num_layers=1, num_attention_heads=2, attention_head_dim=4, num_embeds_ada_norm=10
    )
    coder, codes = diffusers.AutoencoderKL(norm_num_groups=1), diffusers.VQModel(norm_num_groups=1)
    ddim = scheduler("DDIMScheduler")
    parts: dict[str, Any] = {
        **dict.fromkeys(("tokenizer", "text_encoder", "safety_checker", "feature_extractor")),
        "requires_safety_checker": False,
        "vae": coder,
        "unet": texts,
        "scheduler": ddim,
    }
    return {
        "DDPM": diffusers.DDPMPipeline(pixels, ddim),
        "LDM": diffusers.LDMPipeline(codes, pixels, ddim),
        "LDM, super-resolution": diffusers.LDMSuperResolutionPipeline(codes, wide, ddim),
        "DiT": diffusers.DiTPipeline(transformer, coder, ddim),
        "Stable Diffusion": diffusers.StableDiffusionPipeline(**parts),
        "image to image": diffusers.StableDiffusionImg2ImgPipeline(**parts),
        "RePaint": diffusers.RePaintPipeline(pixels, scheduler("RePaintScheduler")),
    }


def outcome(obj: Any) -> str:
    """ "yes" where `optimize` makes a drop-in of it; else what it says."""
    try:
        fastddpm.optimize(obj)
    except fastddpm.dropin.Unrecognised:
        return "not recognised"
    except ValueError as error:
        return str(error)
    return "yes"


def alone(name: str) -> str:
    """The same of a scheduler alone, whose step may be the original's all the same."""
    found = outcome(scheduler(name))
    if found != "yes":
        return found
    if name in EXPLODING:  # whose steps are not made by rows of a plan, that could be missing
        return found
    fast = fastddpm.optimize(scheduler(name))
    fast.set_timesteps(STEPS)
    zeros = torch.zeros(1, 3, 4, 4)
    fast.step(zeros, fast.timesteps[0], zeros)
    return "the original's step" if "by the original's step: " in str(fast.report()) else "yes"


def lines() -> list[str]:
    """The table, and the refusals that its letters stand for."""
    known = (one.name for one in KarrasDiffusionSchedulers)
    names = [*(name for name in known if name not in LEFT_OUT), *OTHERS]
    made, reasons = pipelines(), list[str]()
    heads = ["scheduler", "alone", *made]
    table = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    for name in names:
        cells = [alone(name)]
        for pipeline in made.values():
            pipeline.scheduler = scheduler(name)
            cells.append(outcome(pipeline))
        for place, cell in enumerate(cells):
            if cell in ("yes", "the original's step"):
                continue
            reason = cell.replace(name, "this scheduler").replace(", ".join(KINDS), "one with a yes here")
            if reason not in reasons:
                reasons.append(reason)
            cells[place] = f"({reasons.index(reason) + 1})"
        table.append(f"| {' | '.join([name.removesuffix('Scheduler'), *cells])} |")
    told = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
    return [*table, "", *told]


def main() -> None:
    """Prints or writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into docs/dropin.md")
    found = "\n".join(lines())
    if not parser.parse_args().write:
        print(found)
        return
    before, rest = DOCUMENT.read_text().split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{found}\n\n{END}{after}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    main()

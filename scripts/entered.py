"""How much of the package one call runs through: functions entered, and the modules that they are in.

    python scripts/entered.py [--list]

Counted with `sys.setprofile`, each function once: `sample()` of the model in the box, the first of a process
and one after it, and `optimize(pipeline)` with a call of it. Only functions with a ``def`` of their own in
``fastddpm``, no class bodies; what stands inside of them (comprehensions, lambdas, functions in functions)
belongs to them. `tests/house/test_entered.py` holds what is found at its ceilings.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parent.parent / "fastddpm"


def entered(call: Callable[[], object]) -> set[tuple[str, str]]:
    """(module, function) of the package that a call enters, in the thread that calls."""
    found: set[tuple[str, str]] = set()
    folder = f"{PACKAGE}/"

    def look(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        # Bodies of modules and classes, which run when they are imported, are not optimised.
        is_function = code.co_flags & (inspect.CO_OPTIMIZED | inspect.CO_NESTED) == inspect.CO_OPTIMIZED
        is_named = is_function and not code.co_name.startswith("<")
        if event == "call" and is_named and code.co_filename.startswith(folder):
            module = frame.f_globals["__name__"]
            found.add((module, f"{module}.{code.co_name}, line {code.co_firstlineno}"))

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


def calls() -> dict[str, Callable[[], object]]:
    """What is counted, by name, in the order in which it is to run."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    import fastddpm

    sampler = fastddpm.load("mnist")
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler())

    def dropped_in() -> object:
        fast = fastddpm.optimize(pipeline)
        fast.set_progress_bar_config(disable=True)
        return fast(num_inference_steps=2, output_type="pt")

    def sample() -> object:
        return sampler.sample(seeds=[1], class_labels=1, progress=False)

    return {
        "sample(), the first": sample,
        "sample(), again": sample,
        "optimize(pipeline), a call": dropped_in,
    }


def main() -> None:
    """Counts from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="name them")
    arguments = parser.parse_args()
    for name, call in calls().items():
        found = entered(call)
        print(f"{name}: {len(found)} functions in {len({module for module, _ in found})} modules")
        if arguments.list:
            print("\n".join(f"  {function}" for _, function in sorted(found)))


if __name__ == "__main__":
    main()

"""What precision costs in images: the model in the box in float32, TF32, bfloat16, float16 and int8.

    python benchmarks/precision_mnist.py                     # everything, on a CPU
    python benchmarks/precision_mnist.py --only chains       # differences of chains alone
    python benchmarks/precision_mnist.py --only images --precisions float32 bf16-here int8-here

*Images*: samples of 50 DDIM steps of the same seeds in each precision, held to each other and to the test
split, by the measures of `quality_mnist.py`. Sample s has seed 100000 + s and is asked for digit s mod 10.
Samples are kept in OUT/PRECISION, so that a run that was stopped goes on.

*Chains*: the largest difference between chains of the same seeds in float32 and in another precision, of the
model in the box, of the small networks that the tests use (random weights) and of the CIFAR-10 network
(random weights). The limits of checks that run in TF32 are derived from these: `tests/tolerances.py`,
`fastddpm/doctor/chains.py`.

`bf16-here` and `int8-here` are this CPU's own: `Sampler` with ``precision="bf16", engine="compile"`` and with
``precision="int8", engine="onnxruntime"``. All others are emulated (`fastddpm_bench.emulation`). TF32: inputs
of convolutions and products are rounded to 10 bits of mantissa, to the nearest, ties away from zero, and for
chains by truncation too; sums are float32's. bfloat16 and float16: weights and the result of every operator
are rounded. The state, the tables and the noise are float32 in all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastddpm
import quality_mnist
from fastddpm.doctor import chains
from fastddpm.files import write_json
from fastddpm.images import to_uint8
from fastddpm_bench import machine
from fastddpm_bench.emulation import EmulatedTF32, InDtype
from fastddpm_bench.tables import markdown_table
from fastddpm_bench.tiny import make_unet
from fastddpm_bench.workloads import CIFAR10

SETTING = quality_mnist.SETTINGS["ddim-50"]
PRECISIONS = ("float32", "tf32", "bf16", "fp16")
CHAINS = (*PRECISIONS, "tf32, truncated")
HERE: dict[str, fastddpm.options.RunOptions] = {
    "bf16-here": {"precision": "bf16", "engine": "compile"},
    "int8-here": {"precision": "int8", "engine": "onnxruntime"},
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

SHARES = ("read_alike", "pixels_of_the_same_level", "pixels_within_one_level")


def emulated(precision: str) -> contextlib.AbstractContextManager[Any]:
    """What a chain of a precision runs in."""
    if not precision.startswith("tf32"):
        return contextlib.nullcontext()
    return EmulatedTF32("truncated" if "truncated" in precision else "nearest")


def images(count: int, out: Path, precisions: Sequence[str] = PRECISIONS) -> dict[str, Any]:
    """Figures of each precision's samples, and how they differ from float32's."""
    reference = quality_mnist.Reference()
    found: dict[str, Any] = {}
    drawn: dict[str, Tensor] = {}
    for precision in precisions:
        began = time.perf_counter()
        print(f"{precision}: {count} samples", flush=True)
        with emulated(precision):
            drawn[precision] = quality_mnist.draw(boxed(precision), SETTING, count, out / precision, 1)
        figures = reference.figures(drawn[precision])
        found[precision] = {**figures, **differences(reference, drawn["float32"], drawn[precision])}
        print(f"  {time.perf_counter() - began:.0f} s", flush=True)
    return {"test_split": reference.real(), "precisions": found}


def differences(reference: quality_mnist.Reference, expected: Tensor, found: Tensor) -> dict[str, Any]:
    """How the images of the same seeds differ: in [-1, 1], in uint8 levels, and in the digit that is read."""
    gap = (found - expected).abs()
    levels = torch.tensor(abs(to_uint8(found).astype(int) - to_uint8(expected).astype(int)))
    read = [reference.classifier.read(quantised(one))[0] for one in (expected, found)]
    return {
        "mean_difference": float(gap.mean()),
        "median_of_images": float(gap.flatten(1).amax(1).median()),
        "largest_difference": float(gap.max()),
        "pixels_of_the_same_level": float((levels == 0).float().mean()),
        "pixels_within_one_level": float((levels <= 1).float().mean()),
        "read_alike": float((read[0] == read[1]).float().mean()),
    }


def quantised(x: Tensor) -> Tensor:
    """What a file would hold, in [-1, 1]."""
    return torch.tensor(to_uint8(x)).movedim(-1, 1).float() / 127.5 - 1


def measure_chains(found: dict[str, dict[str, float]], save: Callable[[], None]) -> None:
    """Adds the largest difference from float32, by case and precision; cases that are there stay."""
    for name, draw in cases().items():
        if name in found:
            continue
        expected, row = draw("float32"), {}
        for precision in CHAINS[1:]:
            with emulated(precision):
                row[precision] = float((draw(precision) - expected).abs().max())
        found[name] = row
        save()
        print(f"  {name}: " + ", ".join(f"{k} {v:.1e}" for k, v in row.items()), flush=True)


def cases() -> dict[str, Callable[[str], Tensor]]:
    """Chains to draw in a precision."""
    found = {"model in the box, one pass": boxed_pass, "CIFAR-10 UNet, one pass": cifar10_pass}
    for method, options in chains.METHODS.items():
        for scale in (1.0, 2.0):
            found[f"model in the box, {method}, guidance {scale:g}"] = boxed_chain(options, scale)
    for seed in range(5):
        for method in chains.METHODS:
            found[f"tests' small UNet of seed {seed}, {method}, 20 steps"] = small(method, seed)
    found["CIFAR-10 UNet, ddim, 50 steps"] = cifar10_chain
    return found


def boxed(precision: str, **options: Any) -> fastddpm.Sampler:
    """The model in the box."""
    if precision in HERE:
        return fastddpm.load(**options).replace(**HERE[precision])
    sampler = fastddpm.load(engine="eager", **options)
    null_label = sampler.model.config.num_classes
    changes = {**sampler.options, "null_label": null_label}
    return fastddpm.Sampler(in_precision(sampler.model, precision), sampler.schedule, **changes)


def in_precision(network: torch.nn.Module, precision: str) -> Any:
    """The network itself, or as it computes in another dtype."""
    return InDtype(network, DTYPES[precision]).eval() if precision in DTYPES else network


def boxed_chain(options: dict[str, Any], scale: float) -> Callable[[str], Tensor]:
    """A chain of `fastddpm doctor`."""

    def draw(precision: str) -> Tensor:
        request = {"class_labels": chains.LABELS, "guidance_scale": scale, "progress": False}
        return boxed(precision, **options).sample(seeds=chains.SEEDS, **request)

    return draw


def boxed_pass(precision: str) -> Tensor:
    """One evaluation of the model in the box, of noise as the middle of a chain has it."""
    return evaluated(fastddpm.load().model, (4, 1, 28, 28), precision)


def small(method: str, seed: int) -> Callable[[str], Tensor]:
    """A chain of `tests/sampler/test_gpu_engine.py`."""

    def draw(precision: str) -> Tensor:
        unet = in_precision(make_unet(seed=seed), precision)
        options: dict[str, Any] = {"clip_sample_range": 1.0, "shape": (3, 16, 16), "null_label": 4}
        schedule = fastddpm.NoiseSchedule.linear()
        sampler = fastddpm.Sampler(unet, schedule, method=method, num_inference_steps=20, **options)
        return sampler.sample(seeds=[3, 2**32 + 5], class_labels=[0, 3], progress=False)

    return draw


def cifar10(precision: str) -> fastddpm.Sampler:
    """The network of the benchmarks, random weights, on two images by 50 DDIM steps."""
    unet = in_precision(CIFAR10.unet(torch.device("cpu")), precision)
    options: dict[str, Any] = {"clip_sample_range": 1.0, "shape": CIFAR10.shape, "engine": "eager"}
    schedule = CIFAR10.schedule
    return fastddpm.Sampler(unet, schedule, method="ddim", num_inference_steps=50, **options)


def cifar10_pass(precision: str) -> Tensor:
    """One evaluation."""
    return evaluated(CIFAR10.unet(torch.device("cpu")), (2, *CIFAR10.shape), precision)


def evaluated(unet: Any, shape: tuple[int, ...], precision: str) -> Tensor:
    """What a network makes of noise at timestep 500."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    labels = () if unet.config.num_classes is None else (torch.tensor(chains.LABELS),)
    with torch.no_grad():
        found: Tensor = in_precision(unet, precision)(x, torch.full(shape[:1], 500), *labels)
    return found


def cifar10_chain(precision: str) -> Tensor:
    """A whole chain."""
    return cifar10(precision).sample(seeds=[3, 4], progress=False)


def image_table(document: dict[str, Any]) -> list[str]:
    """Markdown: what each precision's images are worth, and how they differ from float32's."""
    head = ["", "agreement", "Frechet distance", "precision", "recall", "read as float32's"]
    head += ["pixels alike", "within one level", "mean difference", "largest of an image, median"]
    found = document["images"]
    real = found["test_split"]
    body = [["halves of the test split", f"{real['classifier_accuracy']:.1%}", *_three(real), *"-----"]]
    for name, row in found["precisions"].items():
        shares = [
            f"{row[key]:.1%}" for key in ("read_alike", "pixels_of_the_same_level", "pixels_within_one_level")
        ]
        gaps = [f"{row[key]:.1e}" for key in ("mean_difference", "median_of_images")]
        same = name == "float32"
        body.append([name, f"{row['agreement']:.1%}", *_three(row), *("-----" if same else [*shares, *gaps])])
    return markdown_table(head, body)


def _three(row: dict[str, float]) -> list[str]:
    return [f"{row[key]:.3f}" for key in ("frechet", "precision", "recall")]


def chain_table(document: dict[str, Any]) -> list[str]:
    """Markdown: differences of chains; of the tests' networks the least and the largest."""
    rows = dict(document["chains"])
    small = {name: rows.pop(name) for name in list(rows) if name.startswith("tests' small UNet")}
    body = [[name, *(f"{row[key]:.1e}" for key in CHAINS[1:])] for name, row in rows.items()]
    spread = [sorted(row[key] for row in small.values()) for key in CHAINS[1:]]
    ends = [f"{values[0]:.1e} to {values[-1]:.1e}" for values in spread]
    body.append([f"the tests' small UNets, {len(small)} chains of 20 steps", *ends])
    return markdown_table(["", *CHAINS[1:]], body)


def main() -> None:
    """Measures from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", choices=["images", "chains"])
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=[*PRECISIONS, *HERE],
        default=list(PRECISIONS),
        help="of images; float32, which the others are held to, is the first",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/precision"))
    parser.add_argument("--show", type=Path, help="measure nothing: the tables of these results")
    args = parser.parse_args()
    if args.show is not None:
        document = json.loads(args.show.read_text())
        tables = {"images": image_table, "chains": chain_table}
        print(
            "\n".join(line for name in tables if name in document for line in [*tables[name](document), ""])
        )
        return
    if args.samples < 2 * quality_mnist.HALF:
        parser.error(f"--samples: {args.samples} given, {2 * quality_mnist.HALF} or more accepted")
    if args.precisions[0] != "float32":
        parser.error(f"--precisions: {args.precisions[0]} is the first, float32 accepted there")
    document: dict[str, Any]
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "precision_mnist.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    document |= {"machine": machine.describe(torch.device("cpu")), "setting": SETTING}

    def save() -> None:
        write_json(path, document)

    if args.only != "images":
        measure_chains(document.setdefault("chains", {}), save)
    if args.only != "chains":
        document["images"] = images(args.samples, args.out, args.precisions)
        save()
    print(path)


if __name__ == "__main__":
    main()

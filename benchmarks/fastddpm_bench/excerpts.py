"""Tables of documents, made of a document's results: what stands between two comments of a Markdown file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fastddpm_bench.results import Document, Result, Row
from fastddpm_bench.statistics import Ratio, summary
from fastddpm_bench.tables import interval, markdown_table

COMPILED = "diffusers, channels_last, compiled"
_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def chains(document: Document) -> list[str]:
    """Milliseconds of processor time a step of every chain, and in brackets over diffusers compiled."""
    return _chains(document, _step)


def chains_on_the_wall(document: Document) -> list[str]:
    """The same of wall time: threads that wait for each other take processor time too."""
    return _chains(document, _step_on_the_wall)


def _chains(document: Document, step: Callable[[Result, Row | None], str]) -> list[str]:
    results = [result for result in document.results if result.subject == "pipelines"]
    names = dict.fromkeys(row.name for result in results for row in result.rows)
    ours = {row.name for result in results for row in result.rows if row.ours}
    body = [
        [f"**{name}**" if name in ours else name, *(step(result, result.row(name)) for result in results)]
        for name in names
    ]
    return markdown_table(["", *(_headed(result.workload) for result in results)], body)


def dropins(document: Document) -> list[str]:
    """What `optimize` takes of the originals' time, where each is the baseline of its contest."""
    originals = {
        "abarankab/DDPM (restated), 1.5 M": ("restated", "abarankab", "original"),
        "SR3 repository (restated), 1.5 M": ("restated", "SR3", "original"),
        "denoising-diffusion-pytorch, DDIM, 1.5 M": ("lucidrains", "", "lucidrains"),
        "diffusers, DDIMPipeline, 1.1 M": (
            "pipelines",
            "mnist 28x28, 1.1 M, ddim, 50 steps, batch 8",
            "diffusers",
        ),
        "diffusers, DDPMPipeline, 35.7 M, batch 2": (
            "pipelines",
            "cifar10 32x32, 35.7 M, ddpm, 10 steps, batch 2",
            "diffusers",
        ),
    }
    body = []
    for title, (subject, workload, original) in originals.items():
        result = _result(document, subject, workload)
        others = [f"{original}, channels_last, compiled"]
        others += [f"fastddpm.optimize, {engine}" for engine in ("eager", "compile", "onnxruntime")]
        body.append(
            [title, _milliseconds(result.baseline, result), *(_over(result, name) for name in others)]
        )
    head = ["library", "original, a step", "the original, channels_last and compiled"]
    return markdown_table([*head, *(f"`optimize`, {e}" for e in ("eager", "compile", "onnxruntime"))], body)


def onnx(document: Document) -> list[str]:
    """Eight images of the model in the box by its exported files, and by what else could draw them."""
    result = _result(document, "pipelines", "mnist 28x28, 1.1 M, ddim, 50 steps, batch 8")
    ways = {
        "`sampler.onnx` in one run": "fastddpm.onnx, whole chain",
        "`step.onnx` in `OnnxSampler`'s loop": "fastddpm.onnx, step by step",
        "`denoiser.onnx` in a PyTorch loop": "plain loop, ONNX Runtime",
        'PyTorch, `engine="onnxruntime"`': "Sampler, onnxruntime",
        'PyTorch, `engine="compile"`': "Sampler, compile",
        'PyTorch, `engine="eager"`': "Sampler, eager",
        "plain PyTorch: `model(x, t)`, contiguous, textbook loop": "plain loop",
    }
    body = []
    for title, name in ways.items():
        row = _row(result, name)
        took = f"{summary(row.process).median:.2f} s"
        body.append(
            [title, took, *(_over(result, name, base) for base in ("plain loop", "plain loop, ONNX Runtime"))]
        )
    return markdown_table(["", "time of the batch", "to plain PyTorch", "to the denoiser in a loop"], body)


RESULTS = ("cpu", "cpu_2_threads")
"""Files of benchmarks/results that tables are made of."""
TABLES: dict[str, tuple[str, Callable[[Document], list[str]]]] = {
    "chains": ("cpu", chains),
    "chains_2_threads": ("cpu_2_threads", chains_on_the_wall),
    "dropins": ("cpu", dropins),
    "onnx": ("cpu", onnx),
}
"""By the name in a document: the results, and what makes the table of them."""


def loaded(folder: Path) -> dict[str, Document]:
    """The results by name, of benchmarks/results."""
    return {name: Document.load(folder / f"{name}.json") for name in RESULTS}


def filled(text: str, results: Mapping[str, Document]) -> str:
    """A Markdown text with its tables made anew.

    Raises:
        KeyError: a table of another name.
    """

    def table(found: re.Match[str]) -> str:
        name, make = TABLES[found[2]]
        return "\n".join((found[1], *make(results[name]), "", found[3]))

    return _BLOCK.sub(table, text)


def _result(document: Document, subject: str, workload: str) -> Result:
    return next(r for r in document.results if r.subject == subject and r.workload.startswith(workload))


def _row(result: Result, name: str) -> Row:
    row = result.row(name)
    if row is None:
        raise ValueError(f"{result.subject}, {result.workload}: {name!r} was not measured")
    return row


def _headed(workload: str) -> str:
    """The network and the batch of a workload's name."""
    parts = workload.split(", ")
    return f"{parts[0]}, {parts[-1]}"


def _milliseconds(row: Row, result: Result) -> str:
    return f"{summary(row.process).median / result.per * 1e3:.3g} ms"


def _step(result: Result, row: Row | None) -> str:
    if row is None:
        return "-"
    base = _row(result, COMPILED)
    return f"{_milliseconds(row, result)} ({_ratio(result, row, base).value:.2f})"


def _step_on_the_wall(result: Result, row: Row | None) -> str:
    if row is None:
        return "-"
    took, base = (summary(one.wall).median / result.per * 1e3 for one in (row, _row(result, COMPILED)))
    return f"{took:.3g} ms ({took / base:.2f})"


def _over(result: Result, name: str, base: str | None = None) -> str:
    """A contestant over another, the baseline if left out."""
    row, other = _row(result, name), result.baseline if base is None else _row(result, base)
    return "1" if row is other else interval(_ratio(result, row, other))


def _ratio(result: Result, row: Row, base: Row) -> Ratio:
    ratio = result.process_ratio(row, base)
    if ratio is None:
        raise ValueError(f"{result.subject}, {result.workload}: no processor time of {row.name!r}")
    return ratio

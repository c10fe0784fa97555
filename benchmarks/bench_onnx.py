"""The model in the box by ONNX Runtime and by PyTorch: same weights, steps and noise, one CPU thread.

    fastddpm export --out digits-onnx
    taskset 0x1 python benchmarks/bench_onnx.py --folder digits-onnx     # interleaved; ratios with intervals
    pytest benchmarks/bench_onnx.py                                      # pytest-benchmark, in turn

    onnx file        sampler.onnx, the whole loop and its noise in one run
    onnx steps       step.onnx in `OnnxSampler`'s loop, noise by NumPy
    onnx denoiser    denoiser.onnx in a Python loop, the update in NumPy
    torch eager      `fastddpm.Sampler`, time path tabulated
    torch compile    the same, engine="compile"
    torch plain      the network as it is, contiguous, in a textbook loop: model(x, t), then the update

The loops of "onnx denoiser" and "torch plain" are given their noise, which costs them nothing. Before
anything is timed all images are compared with those of "torch plain" (1e-3). Times are those of a whole
batch, wall time or, on a busy machine, CPU time of the process (``--clock cpu``); intervals are 95 %,
by resampling the rounds.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from bench_dropin import ratio_of_medians

import fastddpm
from fastddpm.onnx import OnnxSampler
from fastddpm.onnx.providers import CPU, Provider
from fastddpm_kernels.noise.reference import normal

AGREEMENT = 1e-3
METHODS = ("ddim", "ddpm")
OPTIONAL = ("onnx file", "onnx steps", "torch eager", "torch compile")
NAMES = (*OPTIONAL, "onnx denoiser", "torch plain")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Contestant = Callable[[], np.ndarray]


class Contest:
    """One batch of digits, drawn by each contestant.

    Args:
        folder: the export of the model in the box.
        batch: images.
        steps: of the chain.
        method: "ddim" (eta 0) or "ddpm".
    """

    def __init__(self, folder: Path, batch: int, steps: int, method: str) -> None:
        torch.set_num_threads(1)
        self.method = method
        self.request = {"seeds": list(range(batch)), "class_labels": [i % 10 for i in range(batch)]}
        self.sampler = fastddpm.load().replace(method=method, num_inference_steps=steps, engine="eager")
        self.abar = self.sampler.schedule.alphas_cumprod
        self.timesteps = [int(t) for t in self.sampler.plan.timesteps]
        shape = self.sampler.shape
        seeds = self.request["seeds"]
        self.x_T = normal(seeds, 0, shape, dtype=np.float32)
        self.noise = [normal(seeds, k + 1, shape, dtype=np.float32) for k in range(steps)]
        self.labels = np.array(self.request["class_labels"], dtype=np.int64)
        self.contestants: dict[str, Contestant] = {
            "onnx file": self._exported(folder, "file"),
            "onnx steps": self._exported(folder, "steps"),
            "onnx denoiser": self._denoiser(folder),
            "torch eager": self._sampler("eager"),
            "torch compile": self._sampler("compile"),
            "torch plain": self._plain(),
        }

    def check(self, names: Sequence[str]) -> None:
        """Runs each of them twice, compilation included, and compares the images."""
        expected = self.contestants["torch plain"]()
        for name in names:
            for _ in range(2):
                difference = np.abs(self.contestants[name]() - expected).max()
            if not difference <= AGREEMENT:
                raise SystemExit(f"{name}, {self.method}: images differ by {difference:.1e}")
            print(f"{name}, {self.method}: largest difference {difference:.1e}", flush=True)

    def _exported(self, folder: Path, loop: str) -> Contestant:
        sampler = OnnxSampler(folder, "cpu", threads=1, loop=loop)
        steps = len(self.timesteps)
        return lambda: sampler.sample(method=self.method, num_inference_steps=steps, **self.request)

    def _sampler(self, engine: str) -> Contestant:
        sampler = self.sampler.replace(engine=engine)
        return lambda: sampler.sample(progress=False, **self.request).numpy()

    def _denoiser(self, folder: Path) -> Contestant:
        session = Provider(CPU, threads=1).session(folder / "denoiser.onnx")

        def predict(x: np.ndarray, t: int) -> np.ndarray:
            feeds = {"x": x, "t": np.full(len(x), t, dtype=np.int64), "class_labels": self.labels}
            return session.run(None, feeds)[0]

        return lambda: self._loop(predict, self.x_T, self.noise, lambda x: np.clip(x, -1, 1))

    def _plain(self) -> Contestant:
        model = copy.deepcopy(self.sampler.model).to(memory_format=torch.contiguous_format).eval()
        labels, x_T = torch.from_numpy(self.labels), torch.from_numpy(self.x_T)
        noise = [torch.from_numpy(z) for z in self.noise]

        def predict(x: torch.Tensor, t: int) -> torch.Tensor:
            return model(x, torch.full((len(x),), t), class_labels=labels)

        def run() -> np.ndarray:
            with torch.no_grad():
                return self._loop(predict, x_T, noise, lambda x: x.clamp(-1, 1)).numpy()

        return run

    def _loop(self, predict, x, noise, clip):  # type: ignore[no-untyped-def]
        """Ho et al. 2020, algorithm 2, or Song et al. 2021, equation 12, on arrays or tensors alike."""
        for k, t in enumerate(self.timesteps):
            abar = float(self.abar[t])
            after = float(self.abar[self.timesteps[k + 1]]) if k + 1 < len(self.timesteps) else 1.0
            # The model in the box predicts v = sqrt(abar) eps - sqrt(1 - abar) x0.
            v = predict(x, t)
            x0 = clip(abar**0.5 * x - (1 - abar) ** 0.5 * v)
            if self.method == "ddim":
                eps = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
                x = after**0.5 * x0 + (1 - after) ** 0.5 * eps
                continue
            alpha = abar / after
            beta = 1 - alpha
            x = (after**0.5 * beta * x0 + alpha**0.5 * (1 - after) * x) / (1 - abar)
            if k + 1 < len(self.timesteps):
                x = x + (beta * (1 - after) / (1 - abar)) ** 0.5 * noise[k]
        return x


def compare(contest: Contest, names: Sequence[str], rounds: int, clock: Callable[[], float]) -> list[str]:
    """Markdown rows: medians, and ratios to "torch plain" and "onnx denoiser", from interleaved rounds."""
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            began = clock()
            contest.contestants[name]()
            times[name].append(clock() - began)
    measured = {name: np.array(values) for name, values in times.items()}
    rows = []
    for name in names:
        spread = np.quantile(measured[name], [0.25, 0.5, 0.75])
        cells = [contest.method, name, "{1:.3f} s ({0:.3f} to {2:.3f})".format(*spread)]
        for other in ("torch plain", "onnx denoiser"):
            ratio, low, high = ratio_of_medians(measured[name], measured[other])
            cells.append("1" if name == other else f"{ratio:.2f} ({low:.2f} to {high:.2f})")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


@pytest.fixture(scope="module")
def contest(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    """Batch 8, 50 DDIM steps."""
    folder = fastddpm.export_onnx(fastddpm.load(), tmp_path_factory.mktemp("export") / "digits")
    made = Contest(folder, 8, 50, "ddim")
    made.check(NAMES)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_batch_of_digits(benchmark, contest: Contest, name: str) -> None:  # type: ignore[no-untyped-def]
    benchmark.pedantic(contest.contestants[name], rounds=7, warmup_rounds=1)


def main() -> None:
    """Times from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="Export of the model in the box; made, if left out.")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["ddim"])
    parser.add_argument("--without", nargs="+", choices=OPTIONAL, default=[], help="Contestants left out.")
    args = parser.parse_args()
    names = [name for name in NAMES if name not in args.without]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or fastddpm.export_onnx(fastddpm.load(), Path(temporary) / "digits")
        import onnxruntime

        print(f"onnxruntime {onnxruntime.__version__}, torch {torch.__version__}, one thread, CPU, ", end="")
        print(f"batch {args.batch}, {args.steps} steps, {args.rounds} rounds, {args.clock} time")
        for method in args.methods:
            contest = Contest(folder, args.batch, args.steps, method)
            contest.check(names)
            print("| method | | median (quartiles) | to torch plain | to onnx denoiser |")
            print("| --- | --- | --- | --- | --- |")
            for row in compare(contest, names, args.rounds, CLOCKS[args.clock]):
                print(row, flush=True)


if __name__ == "__main__":
    main()

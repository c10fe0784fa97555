"""The files of an export in ONNX Runtime against PyTorch, on the CPU.

Errors are the largest absolute difference, divided by the largest value of PyTorch's output where that is
above 1 (an unclipped chain of an untrained network leaves [-1, 1]). A step's x0 = clip(p*x + q*m) is a small
difference of terms of the size of p, which is over 100 at a chain's start, so its error is divided by p where
that is above 1. The reference is the network in float32, also for files with a float16 network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort  # type: ignore[import-untyped, unused-ignore]
import torch
from torch import Tensor

from fastddpm.export.compose import NOISE_ELEMENTS
from fastddpm.export.errors import ExportError
from fastddpm.export.network import Whole
from fastddpm.export.settings import ExportSettings
from fastddpm.export.table import ROW_COLUMNS
from fastddpm.plans import METHODS, Plan
from fastddpm.plans.method_options import MethodName
from fastddpm.plans.registry import formulas
from fastddpm.sampler import Sampler
from fastddpm_kernels import N_COLUMNS, Column
from fastddpm_kernels.noise import reference
from fastddpm_kernels.reverse_step.reference import Arguments, reverse_step

# A chain's 1e-3 is above what was seen, and no bound: the network amplifies the last bits in which
# convolutions differ. Of 1,024 seeds of the model in the box the worst was 9.2e-5 off, as far from float64 in
# PyTorch as in ONNX Runtime (docs/onnx.md).
LIMITS: dict[str, dict[str, float]] = {
    "float32": {"denoiser.onnx": 1e-5, "step.onnx": 1e-5, "step_guided.onnx": 1e-5, "sampler.onnx": 1e-3},
    # Ten bits of mantissa through tens of layers, and then through a chain.
    "float16": {"denoiser.onnx": 1e-2, "step.onnx": 1e-2, "step_guided.onnx": 1e-2, "sampler.onnx": 1e-1},
}
NORMALS = 2e-6
SEEDS = (0, 5, (1 << 40) + 3)
SELF_TEST_STEP = 7
FEW_STEPS = 6
GUIDANCE = 2.0
MORE_METHODS = ("lms", "dpmpp_3m_sde")
"""Solvers whose rows sampler.onnx is given: three kept sums of x0, x and m; two kept x0, and noise."""
BETWEEN = "dpm2"  # tells the network times between two of training
STEPS_OF_SOLVERS = 4
"""Enough to use all that is kept, and few, since chains of dpm2 pass rounding on a hundredfold."""
OFFSET = 0.25
"""Of a time, of those that lie between two."""
# A row in which every column counts.
FULL_ROW = (1.1, -0.4, 0.9, 0.7, 0.3, 0.2, -0.25, 0.5, -2.0, -1.0)

Arrays = dict[str, npt.NDArray[Any]]


def verified(folder: Path, settings: ExportSettings) -> dict[str, dict[str, float]]:
    """Runs every model of a folder and gives its error and its limit.

    Raises:
        ExportError: an error above its limit, or words of the noise that are not those of noise spec v1.
    """
    limits = LIMITS["float16" if settings.call.half else "float32"]
    errors = {"denoiser.onnx": _denoiser_error(folder, settings)}
    for name, guided in (("step.onnx", False), ("step_guided.onnx", True)):
        if (folder / name).is_file():
            errors[name] = _step_error(folder / name, settings, guided)
    _check_noise(folder)
    errors["sampler.onnx"] = _sampler_error(folder, settings)
    for name, error in errors.items():
        if not error <= limits[name]:
            raise ExportError(
                f"verification: {name} differs from PyTorch by {error:.2e}; at most {limits[name]:.0e} "
                "accepted"
            )
    noise = {"max_abs_error": 0.0, "limit": 0.0}
    measured = {name: {"max_abs_error": error, "limit": limits[name]} for name, error in errors.items()}
    return {**measured, "noise.onnx": noise}


def self_test() -> dict[str, Any]:
    """Seeds, a step, and what noise.onnx gives for them: the first word of each lane, the first normals."""
    words = reference.words(SEEDS, SELF_TEST_STEP, NOISE_ELEMENTS)
    normals = reference.normal(SEEDS, SELF_TEST_STEP, (NOISE_ELEMENTS,))
    return {
        "seeds": list(SEEDS),
        "step": SELF_TEST_STEP,
        "words": words[:, :, 0].tolist(),
        "normals": normals[:, :8].tolist(),
        "normals_tolerance": NORMALS,
    }


def session(path: Path) -> Any:
    """An ONNX Runtime session on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def outputs_of(session: Any, feed: Arrays) -> list[npt.NDArray[Any]]:
    """What a model gives; ExportError where ONNX Runtime cannot run it."""
    try:
        outputs: list[npt.NDArray[Any]] = session.run(None, feed)
    except Exception as error:  # ONNX Runtime's exceptions have no class in common
        reason = " ".join(str(error).split())[:400]
        raise ExportError(f"verification: ONNX Runtime cannot run what was exported ({reason})") from error
    return outputs


def relative_error(given: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    """The largest difference, divided by the largest wanted value where that is above 1; NaN stays NaN."""
    if given.shape != wanted.shape:
        raise ExportError(f"verification: shape {given.shape} from ONNX, {wanted.shape} from PyTorch")
    return float(np.abs(given - wanted).max() / max(1.0, float(np.abs(wanted).max())))


def random_inputs(settings: ExportSettings, batch: int, sizes: Sequence[int]) -> dict[str, Tensor]:
    """Inputs of a step: x, noise, x0_prev and what else the network takes; of these sizes behind channels."""
    call, generator = settings.call, torch.Generator().manual_seed(0)
    image = (batch, call.channels, *sizes)
    tensors = {name: torch.randn(image, generator=generator) for name in ("x", "noise", "x0_prev")}
    if call.num_classes is not None:
        tensors["class_labels"] = torch.randint(call.num_classes, (batch,), generator=generator)
    if call.condition_channels:
        shape = (batch, call.condition_channels, *sizes)
        tensors["condition"] = torch.rand(shape, generator=generator) * 2 - 1
    for one in call.cond:
        tensors[one.input], tensors[one.without] = one.examples(batch), one.examples(batch, first=1)
    return tensors


def named(settings: ExportSettings, given: dict[str, Tensor], *, without: bool = False) -> dict[str, Tensor]:
    """Of the inputs of a step, labels and conditions by the names that the network has for them."""
    labels = {name: given[name] for name in ("class_labels",) if name in given}
    return labels | {one.name: given[one.without if without else one.input] for one in settings.call.cond}


def fed(names: Sequence[str], tensors: dict[str, Tensor]) -> Arrays:
    """Those that a model has inputs for."""
    return {name: tensor.numpy() for name, tensor in tensors.items() if name in names}


def _network(settings: ExportSettings, x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        model = Whole(settings.sampler.model, list(cond))  # type: ignore[arg-type]
        output: Tensor = model(x, t, *cond.values())
        return output.float()


def _sizes(settings: ExportSettings) -> Iterator[tuple[int, ...]]:
    """The sizes exported, behind the channels, and others where they may vary."""
    exported = settings.call.shape[1:]
    yield exported
    if settings.sizes is not None:
        height, width = exported
        yield height + settings.sizes[0], width + 2 * settings.sizes[0]


def _denoiser_error(folder: Path, settings: ExportSettings) -> float:
    run = session(folder / "denoiser.onnx")
    errors = []
    for batch, sizes in enumerate(_sizes(settings), start=3):
        given = random_inputs(settings, batch, sizes)
        plan, names = settings.sampler.plan, [one.name for one in run.get_inputs()]
        times = plan.model_time if settings.call.tells_levels else plan.timesteps
        t = torch.tensor(times[np.linspace(0, len(plan) - 1, batch).astype(int)])
        x = torch.cat([given[name] for name in ("condition", "x") if name in given], dim=1)
        feed = fed(names, {**given, "x": x, "t": t})
        if tells_between(run):
            t, feed["time_offset"] = t + OFFSET, np.array(OFFSET, np.float32)
        (m,) = outputs_of(run, feed)
        errors.append(relative_error(m, _network(settings, x, t, named(settings, given)).numpy()))
    return max(errors)


def _step_error(path: Path, settings: ExportSettings, guided: bool) -> float:
    run, plan = session(path), settings.sampler.plan
    given = random_inputs(settings, 2, settings.call.shape[1:])
    full = np.pad(np.array(FULL_ROW, np.float32), (0, N_COLUMNS - len(FULL_ROW)))
    times = plan.model_time if settings.call.tells_levels else plan.timesteps
    # Of a solver, its first columns; what else it has of other rows, step.onnx is given as one sum.
    own = [np.where(np.arange(N_COLUMNS) < ROW_COLUMNS, row, 0) for row in plan.table]
    rows = [(full, 0), *((own[k], k) for k in sorted({0, len(plan) // 2, len(plan) - 1}))]
    errors = []
    for row, k in rows:
        feed = fed([one.name for one in run.get_inputs()], given)
        feed |= {"row": row[:ROW_COLUMNS], "time": times[k : k + 1].reshape(())}
        time = torch.tensor(times[k])
        if tells_between(run):
            time, feed["time_offset"] = time + OFFSET, np.array(OFFSET, np.float32)
        if guided:
            feed["guidance_scale"] = np.array(GUIDANCE, np.float32)
        found = outputs_of(run, feed)
        wanted = _torch_step(settings, given, torch.tensor(row), time, guided)
        x_next, x0 = (relative_error(f, w.numpy()) for f, w in zip(found, wanted, strict=True))
        errors += [x_next, x0 / max(1.0, float(row[Column.X0_FROM_X]))]
    return max(errors)


def _torch_step(
    settings: ExportSettings, given: dict[str, Tensor], row: Tensor, time: Tensor, guided: bool
) -> tuple[Tensor, Tensor]:
    """(x_next, x0) of `reverse_step` around the network."""
    x, x0, cond = given["x"].clone(), given["x0_prev"].clone(), named(settings, given)
    inputs = torch.cat([given[name] for name in ("condition", "x") if name in given], dim=1)
    guidance = None
    if guided:
        inputs, guidance = torch.cat((inputs, inputs)), torch.full((len(x),), GUIDANCE)
        without = named(settings, given, without=True)
        if "class_labels" in cond:
            without["class_labels"] = torch.full_like(cond["class_labels"], settings.call.null_label or 0)
        cond = {name: torch.cat((without[name], value)) for name, value in cond.items()}
    output = _network(settings, inputs, time.expand(len(inputs)), cond)
    counter, noise = torch.zeros(len(x), 2, dtype=torch.int64), given["noise"][None]
    reverse_step(Arguments(x, output, row[None], counter, noise, x0, guidance, kept=x0[None], clip=True))
    return x, x0


def _check_noise(folder: Path) -> None:
    feed = {"seeds": np.array(SEEDS, np.int64), "step": np.array(SELF_TEST_STEP, np.int64)}
    words, normals = outputs_of(session(folder / "noise.onnx"), feed)
    wanted = reference.normal(SEEDS, SELF_TEST_STEP, (NOISE_ELEMENTS,))
    same = np.array_equal(words, reference.words(SEEDS, SELF_TEST_STEP, NOISE_ELEMENTS))
    if not same or not np.abs(normals - wanted).max() <= NORMALS:
        raise ExportError("verification: noise.onnx does not give the noise of noise spec v1")


def tells_between(run: Any) -> bool:
    """Whether a model takes times between two of training."""
    return "time_offset" in {one.name for one in run.get_overridable_initializers()}


def _chains(settings: ExportSettings, *, between: bool) -> Iterator[tuple[Plan, float, float]]:
    """(plan, eta, guidance scale) of the chains that are run: the default one, and a short one per formula,
    and by some solvers."""
    guidance = GUIDANCE if settings.call.guides else 1.0
    yield settings.sampler.plan, settings.method.eta, 1.0
    if settings.call.preconditioned:
        few = min(STEPS_OF_SOLVERS, len(settings.schedule))
        yield settings.method.adapted(num_inference_steps=few).plan(settings.schedule), 0.0, guidance
        return
    for name in (*formulas(), *MORE_METHODS, *([BETWEEN] if between else [])):
        eta = 0.5 if "eta" in METHODS[name].takes else 0.0
        steps = min(FEW_STEPS if name in formulas() else STEPS_OF_SOLVERS, len(settings.schedule))
        method = settings.method.adapted(
            method=cast("MethodName", name), num_inference_steps=steps, timestep_spacing="leading", eta=eta
        )
        try:
            plan = method.plan(settings.schedule)
        except ValueError:
            continue  # zero terminal SNR, which this method cannot start from with these options
        yield plan, eta, guidance


def _sampler_error(folder: Path, settings: ExportSettings) -> float:
    run, call = session(folder / "sampler.onnx"), settings.call
    given = random_inputs(settings, len(SEEDS), call.shape[1:])
    errors = []
    kinds = {one.name: one.type for one in run.get_overridable_initializers()}
    between = kinds["times"] == "tensor(float)" and not call.tells_levels
    known = [] if call.preconditioned else list(formulas())
    for plan, eta, guidance in _chains(settings, between=between):
        sampler = Sampler.from_plan(
            settings.sampler.model,
            settings.schedule,
            plan,
            null_label=call.null_label,
            shape=call.shape,
            engine="eager",
        )
        cond, without = named(settings, given), named(settings, given, without=True)
        wanted = sampler.sample(
            seeds=SEEDS,
            guidance_scale=guidance,
            class_labels=cond.pop("class_labels", None),
            condition=given.get("condition"),
            cond=cond,
            uncond={name: without[name] for name in cond},
            progress=False,
        )
        feed = fed([one.name for one in run.get_inputs()], given)
        feed |= {"seeds": np.array(SEEDS, np.int64), **_walked(plan, eta, kinds["times"], known)}
        if plan is settings.sampler.plan:  # which the file has
            feed = {name: array for name, array in feed.items() if name not in ("rows", "times")}
        if call.guides:
            feed["guidance_scale"] = np.array(guidance, np.float32)
        images, *_ = outputs_of(run, feed)
        errors.append(relative_error(images, wanted.numpy()))
    return max(errors)


def _walked(plan: Plan, eta: float, kind: str, known: Sequence[str]) -> Arrays:
    """The inputs of sampler.onnx, which knows these formulas, that say which plan."""
    told: Arrays = {"eta": np.array(eta, np.float32)}
    if plan.method in known:
        number = np.array(known.index(plan.method), np.int64)
        return {**told, "timesteps": plan.timesteps, "method": number}
    dtype = np.float32 if kind == "tensor(float)" else np.int64
    told |= {"timesteps": np.zeros(0, np.int64), "method": np.array(len(known), np.int64)}
    return {**told, "rows": plan.table, "times": plan.model_time.astype(dtype)}

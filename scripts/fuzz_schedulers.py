"""Random diffusers schedulers, ours in the original's place: `python scripts/fuzz_schedulers.py --cases 300`.

Each case is a configuration, timesteps and a loop around `step`, drawn by its seed. Wrong is a result that
differs (1e-4 of the largest, at the end), another dtype or shape, a random stream left in another state, and
an error where the original has none, unless it names what is not supported. Each wrong case is printed with
the command that shows it again.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
import torch
from drawn_schedulers import (  # type: ignore[import-not-found, unused-ignore]
    KINDS,
    configuration,
    made,
    parameters,
    steps,
)

import fastddpm
from fastddpm.checks import BadArgument

# Relative to the largest value, where that is above 1: at the end, and on the way.
TOLERANCES = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
ON_THE_WAY = 10
TWICE = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete")
RIGHT = (
    "same",
    "same, by the original's step",
    "both raise",
    "refused by name",
    "original not finite",
    "no such case",
)


class Outcome(NamedTuple):
    """Of a case: one of `RIGHT` or what is wrong; what the case is; how wrong."""

    name: str
    case: str
    detail: str = ""


class Loop(NamedTuple):
    """What a caller does around a scheduler."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    begin: int
    sets_begin: bool
    generators: int  # 0: none; 1: one; more: a list
    is_wide: bool
    options: dict[str, Any]


def one(seed: int, kinds: tuple[str, ...]) -> Outcome:
    """A case."""
    source = random.Random(seed)
    kind = source.choice(kinds)
    config = configuration(source, kind)
    timesteps = steps(source, kind, config)
    loop = _loop(source, kind, config)
    case = f"{kind} {shown(config)} {shown(timesteps)} {loop}"
    try:
        original, twin = made(kind, config), made(kind, config)
    except Exception as error:
        return Outcome("no such case", case, repr(error))
    expected, theirs = attempt(lambda: _walked(original, timesteps, loop))
    fast, refused = attempt(lambda: fastddpm.optimize(twin))
    got, ours = (None, refused) if refused else attempt(lambda: _walked(fast, timesteps, loop))
    early = judged(expected, theirs, ours, lambda: all(bool(x.isfinite().all()) for x in expected[0]))
    if early:
        return Outcome(early, case, repr(ours or theirs))
    name, detail = _compared(expected, got, TOLERANCES.get(loop.dtype, 1e-4))
    if name == "same" and (isinstance(vars(fast).get("_walk"), str) or vars(fast).get("_refused")):
        return Outcome("same, by the original's step", case)
    return Outcome(name, case, detail)


def judged(expected: Any, theirs: Any, ours: Any, is_finite: Callable[[], bool]) -> str:
    """What errors say about a case; empty where there is something to compare."""
    if theirs is not None:
        return "both raise" if ours is not None else "OURS DOES NOT RAISE"
    if not is_finite():
        return "original not finite"
    if ours is None:
        return ""
    return "refused by name" if isinstance(ours, BadArgument) else "OURS RAISES"


def attempt(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """(result, None), or (None, the error)."""
    try:
        return call(), None
    except Exception as error:
        return None, error


def shown(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments without long lists and tensors."""
    short = {}
    for name, value in arguments.items():
        is_long = isinstance(value, np.ndarray | list) and len(value) > 5
        short[name] = f"{len(value)} values" if is_long else value
    return short


def _loop(source: random.Random, kind: str, config: dict[str, Any]) -> Loop:
    batch, taken = source.choice([1, 2, 3]), parameters(kind, "step")
    dtypes = [torch.float32] * 8 + [torch.float16, torch.bfloat16, torch.float64]
    drawn = {
        "return_dict": source.random() < 0.7,
        "eta": source.choice([0.0, 0.0, 0.3, 1.0]),
        "use_clipped_model_output": source.random() < 0.3,
    }
    if source.random() < 0.1:
        drawn |= {"s_churn": source.choice([0.5, 5.0]), "s_noise": source.choice([1.0, 1.1])}
    begin = source.choice([0] * 6 + [1, 2, 4])
    return Loop(
        shape=(batch, 3, 4, 4),
        dtype=source.choice(dtypes),
        begin=2 * begin if kind in TWICE else begin,
        sets_begin=source.random() < 0.7,
        generators=source.choice([0, 1, 1, batch]),
        is_wide=config.get("variance_type") in ("learned", "learned_range"),
        options={name: value for name, value in drawn.items() if name in taken},
    )


def _walked(
    scheduler: Any, timesteps: dict[str, Any], loop: Loop
) -> tuple[list[Any], list[list[Any]], list[Any]]:
    """(states, the other results of each step, states of the generators)."""
    scheduler.set_timesteps(**timesteps)
    generators = [torch.Generator().manual_seed(number) for number in range(loop.generators)]
    torch.manual_seed(5)
    options = dict(loop.options)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = generators if loop.generators > 1 else (generators or [None])[0]
    x = torch.randn(loop.shape, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    x, visited = x.to(loop.dtype), scheduler.timesteps
    if 0 < loop.begin < len(visited):
        visited = visited[loop.begin :]
        if loop.sets_begin and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(loop.begin)
    states, others = [], []
    for t in visited:
        m = _network(scheduler.scale_model_input(x, t), t, loop.is_wide)
        result = scheduler.step(m, t, x, **options)
        x, *rest = result.to_tuple() if loop.options.get("return_dict") else result
        states.append(x.clone())
        others.append(rest)
    return states, others, [*(one.get_state() for one in generators), torch.get_rng_state()]


def _network(x: torch.Tensor, t: torch.Tensor, is_wide: bool) -> torch.Tensor:
    time = t.to(torch.float32) if t.is_floating_point() else t.double().float()
    m = 0.9 * torch.tanh(0.7 * x.float() + 0.002 * time / (1 + 0.001 * time.abs())) + 0.1 * x.float().roll(
        1, -1
    )
    return (torch.cat([m, 0.3 * torch.tanh(x.float())], 1) if is_wide else m).to(x.dtype)


def _compared(expected: Any, got: Any, tolerance: float) -> tuple[str, str]:
    if not all(a.equal(b) for a, b in zip(expected[2], got[2], strict=True)):
        return "ANOTHER RANDOM STREAM", ""
    last = len(expected[0]) - 1
    for row, (a, b) in enumerate(zip(expected[0], got[0], strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return "ANOTHER SHAPE OR DTYPE", f"{a.shape} {a.dtype}, ours {b.shape} {b.dtype}"
        off = _off(a, b)
        if not off <= tolerance * (1 if row == last else ON_THE_WAY):
            return "DIFFERS", f"by {off:.2g} behind step {row + 1} of {last + 1}"
    for row, (theirs, ours) in enumerate(zip(expected[1], got[1], strict=True)):
        if [a.dtype for a in theirs] != [b.dtype for b in ours]:
            return "A SECOND RESULT OF ANOTHER DTYPE", str([b.dtype for b in ours])
        off = max((_off(a, b) for a, b in zip(theirs, ours, strict=True)), default=0.0)
        if not off <= tolerance:
            return "A SECOND RESULT DIFFERS", f"by {off:.2g} in step {row + 1} of {last + 1}"
    return "same", ""


def _off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1))


def run(
    case: Callable[[int, tuple[str, ...]], Outcome], kinds: tuple[str, ...], script: str, words: str
) -> None:
    """Cases until there are enough or time is over; exit code 1 if one is wrong."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new case after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next has the next")
    parser.add_argument("--kinds", default=",".join(kinds), help="what to draw from, with commas between")
    parser.add_argument("--all", action="store_true", help="print every case")
    given = parser.parse_args()
    chosen = tuple(given.kinds.split(","))
    if not set(chosen) <= set(kinds):
        parser.error(f"--kinds: {given.kinds} given, some of {', '.join(kinds)} accepted")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    began, outcomes = time.perf_counter(), Counter[str]()
    for seed in range(given.seed, given.seed + given.cases):
        if time.perf_counter() - began > given.seconds:
            break
        found = case(seed, chosen)
        outcomes[found.name] += 1
        if found.name not in RIGHT or given.all:
            again = f"python {script} --cases 1 --seed {seed}"
            again += f" --kinds {given.kinds}" if chosen != kinds else ""
            print(f"{found.name} {found.detail[:300]} | {again} | {found.case}", flush=True)
    for name, count in sorted(outcomes.items()):
        print(f"{count:6} {name}")
    print(f"{outcomes.total()} cases in {time.perf_counter() - began:.0f} s")
    sys.exit(1 if set(outcomes) - set(RIGHT) else 0)


if __name__ == "__main__":
    run(one, KINDS, "scripts/fuzz_schedulers.py", __doc__ or "")

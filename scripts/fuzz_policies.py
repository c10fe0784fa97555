"""Policies of random configurations, as many as wanted: `python scripts/fuzz_policies.py --examples 500`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from policy_cases import random_case  # type: ignore[import-not-found, unused-ignore]  # noqa: E402
from tolerances import ACTIONS  # type: ignore[import-not-found, unused-ignore]  # noqa: E402


def main() -> None:
    """Prints the largest difference, and every configuration beyond the limit.

    Where the published loop in float32 is as far from itself in float64, the network passes rounding on, and
    nothing is wrong; exit code 1 if ours is ten times as far in any.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    largest, beyond, wrong = 0.0, 0, 0
    for seed in range(arguments.seed, arguments.seed + arguments.examples):
        case = random_case(seed)
        difference = case.difference()
        if difference <= ACTIONS:
            largest = max(largest, difference)
            continue
        theirs, ours = case.from_exact()
        beyond, wrong = beyond + 1, wrong + (not ours <= 10 * theirs)
        print(f"{difference:.1e}; of float64 {theirs:.1e}, ours {ours:.1e}: {case.words}", flush=True)
    print(
        f"{arguments.examples} policies: differences up to {largest:.1e}, and {beyond} beyond {ACTIONS:.0e}, "
        f"of which ours is ten times as far from float64 in {wrong}"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()

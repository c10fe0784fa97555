"""Options, fixtures and the closing table of the proofs.

pytest tests/gpu_proofs                            what CI runs
pytest tests/gpu_proofs --full                     every case for every card: minutes more
pytest tests/gpu_proofs --write-table              puts the figures into docs/gpu.md
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import triton

# The helper modules that these tests share with the others.
sys.path.insert(0, str(Path(__file__).parents[1]))

from proof_table import ProofTable

TABLE = pytest.StashKey[ProofTable]()
CEILINGS = json.loads((Path(__file__).parent / "ceilings.json").read_text())
TRITON = ".".join(triton.__version__.split(".")[:2])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="Build every case for every card.")
    parser.addoption("--write-table", action="store_true", help="Put the figures into docs/gpu.md.")


@pytest.fixture(scope="session")
def proof(request: pytest.FixtureRequest):
    """`proof(letter, subject, name=figure, ...)` adds to the closing table."""
    stash = request.config.stash
    if TABLE not in stash:
        stash[TABLE] = ProofTable()
    return stash[TABLE].add


@pytest.fixture(scope="session")
def ceilings():
    """The limits of ceilings.json."""
    return CEILINGS


@pytest.fixture
def most(ceilings):
    """`most(name, target)`: the registers and the instructions an element that this Triton's build may take.

    What a compiler makes of a kernel changes with it, so there are ceilings for each version that CI runs.
    With another one the calling test is skipped at this point, loudly: what it has asserted before holds.
    """

    def look_up(name: str, target: str) -> tuple[int, float]:
        if TRITON not in ceilings["builds"]:
            known = ", ".join(ceilings["builds"])
            reason = f"REGISTERS AND INSTRUCTIONS NOT HELD: ceilings for Triton {known}, this is {TRITON}"
            warnings.warn(reason, stacklevel=2)
            pytest.skip(reason)
        registers, instructions = ceilings["builds"][TRITON][name][target]
        return registers, instructions

    return look_up


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether every case is to be built; False where pytest did not begin here and has no such option."""
    return bool(request.config.getoption("--full", default=False))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands its rows to the one that prints."""
    handed = getattr(session.config, "workeroutput", None)
    if handed is not None and TABLE in session.config.stash:
        handed["proofs"] = session.config.stash[TABLE].rows


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """Takes the rows of a process that is done."""
    rows = getattr(node, "workeroutput", {}).get("proofs", {})
    table = node.config.stash.setdefault(TABLE, ProofTable())
    for proof, subjects in rows.items():
        for subject, figures in subjects.items():
            table.add(proof, subject, **figures)


def pytest_terminal_summary(terminalreporter, exitstatus: int, config: pytest.Config) -> None:
    table = config.stash.get(TABLE, None)
    if table is None:
        return
    terminalreporter.section("GPU proofs, made without a GPU")
    terminalreporter.write_line(table.text())
    if config.getoption("--write-table", default=False) and exitstatus == 0:
        table.write()
        terminalreporter.write_line("\nwritten into docs/gpu.md")

"""Proofs b and f: errors of the kernels against float64, and the bytes they move, in Triton's interpreter.

Bytes are counted in the interpreter's loads and stores, since an operator's signature proves nothing about
its traffic; the rest of a step by the operators that it dispatches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler

from fastddpm.engine.step import StepBuffers, StepCase, step
from fastddpm_bench.costs import Watch

# By one process, which starts the interpreter once.
pytestmark = pytest.mark.xdist_group("interpreted")
SCRIPT = Path(__file__).with_name("interpreted.py")


@pytest.fixture(scope="module")
def interpreted():
    """What interpreted.py prints."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_errors(interpreted, proof):
    assert len(interpreted["errors"]) >= 5
    for name, (error, limit) in interpreted["errors"].items():
        proof("b", name, error=f"{error:.1e}", limit=f"{limit:.0e}")
        assert error <= limit, name


def test_bytes(interpreted, proof, ceilings):
    """Each tensor exactly as often as the ceilings say, and next to nothing else."""
    assert interpreted["traffic"].keys() == ceilings["tensors_moved"].keys()
    for name, moved in interpreted["traffic"].items():
        reads, writes = moved["reads"], moved["writes"]
        total = reads + writes
        allowed = ceilings["tensors_moved"][name]
        other = f"{moved['other']:.1%}"
        proof(
            "f", name, read=f"{reads:g}", written=f"{writes:g}", total=f"{total:g} of {allowed}", other=other
        )
        assert total == allowed, name
        assert moved["other"] <= 0.1, "tables, counters, seeds, vectors of channels, partial sums"


def test_operators_of_a_step_beside_the_network(proof):
    """The reverse step in our engine is one operator and a counter; diffusers' scheduler is dozens."""
    shape = (4, 3, 32, 32)
    buffers = StepBuffers(StepCase(shape, clip=True), 10, torch.device("cpu"))
    scheduler = DDPMScheduler()
    scheduler.set_timesteps(50)
    x, m = torch.randn(shape), torch.randn(shape)
    with torch.no_grad(), Watch() as theirs:
        scheduler.step(m, scheduler.timesteps[3], x)
    reads = sum(op.name == "_local_scalar_dense" for op in theirs.costs)
    n_bytes = sum(op.bytes for op in theirs.costs) / (x.numel() * 4)
    proof("f", "diffusers' DDPMScheduler.step", operators=len(theirs.costs), **{"host reads": reads})
    proof("f", "diffusers' DDPMScheduler.step", total=f"{n_bytes:.0f}")
    assert reads > 0

    called = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastddpm.engine.step.reverse_step", lambda *given, **options: called.append(1))
        with torch.no_grad(), Watch() as ours:
            step(lambda x, k: m, buffers, StepCase(shape, clip=True))
    operators = len(ours.costs) + len(called)
    proof("f", "our step beside the network", operators=operators, **{"host reads": 0})
    assert len(called) == 1
    assert [op.name for op in ours.costs] == ["add_"]

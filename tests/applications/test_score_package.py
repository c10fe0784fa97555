"""`fastddpm.score` as a name: there without being imported, and costing `import fastddpm` nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_score_is_loaded_when_asked_for():
    code = (
        "import sys, fastddpm\n"
        "print('fastddpm.score' in sys.modules, 'scipy' in sys.modules)\n"
        "fastddpm.score.VPSDE().times(3)\n"
        "print('fastddpm.score' in sys.modules, 'scipy' in sys.modules)\n"
        "print(all(hasattr(fastddpm.score, name) for name in fastddpm.score.__all__))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["False False", "True False", "True"]


def test_figures_in_the_documentation_are_those_measured_and_agree():
    """Predictor-corrector, ODE and DDPM within two points; bits/dim the same to 0.02 by every solver."""
    root = Path(__file__).parents[2]
    text = (root / "docs" / "score.md").read_text()
    figures = json.loads((root / "benchmarks" / "results" / "score_mnist.json").read_text())
    shares = [row["agreement"] for row in (*figures["samplers"].values(), figures["plans"]["ddpm-1000"])]
    bits = [row["bits_per_dim"] for row in figures["bits"].values()]
    assert len(shares) >= 3
    assert max(shares) - min(shares) <= 0.02
    assert len(bits) >= 2
    assert max(bits) - min(bits) <= 0.02
    assert all(f"{share:.1%}" in text for share in shares)
    assert all(f"{value:.4f}" in text for value in bits)

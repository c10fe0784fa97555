"""`fastddpm.score` as a name: there without being imported, and costing `import fastddpm` nothing."""

from __future__ import annotations

import subprocess
import sys


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

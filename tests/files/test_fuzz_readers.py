"""Every reader and command against damaged files and arguments: documented errors, in 10 s and 2 GB."""

from __future__ import annotations

import sys

import pytest

pytest.importorskip("hypothesis")
pytest.importorskip("datasets")
if sys.platform == "win32":
    pytest.skip("processes are watched with the module resource", allow_module_level=True)

import fuzz

EXAMPLES = 200
"""`python scripts/fuzz.py --examples 5000` runs more of them."""


def test_damaged_files_are_read_or_refused(tmp_path):
    findings = fuzz.run(EXAMPLES, 0, tmp_path)
    assert not findings.wrong, "\n".join(findings.wrong)
    refused = sum(n for name, n in findings.outcomes.items() if name.endswith("refused"))
    assert sum(findings.outcomes.values()) >= EXAMPLES
    assert refused > EXAMPLES // 4  # the damage is real
    assert findings.outcomes["command read"]
    assert findings.outcomes["command refused"] > EXAMPLES // 10

"""These tests run the Triton kernels on the CPU, in Triton's interpreter: only under TRITON_INTERPRET=1.

Triton reads the variable when a kernel is defined, so one process runs either these tests or the compiled
ones.
"""

import os
import sys
from pathlib import Path

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

# The helper modules that these tests share with the others.
sys.path.insert(0, str(Path(__file__).parents[1]))

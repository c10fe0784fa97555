"""These tests run the Triton kernels on the CPU, in Triton's interpreter: only under TRITON_INTERPRET=1.

Triton reads the variable when it is imported, so that one process runs either these tests or the compiled ones.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]

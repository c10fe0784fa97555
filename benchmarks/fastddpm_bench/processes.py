"""Whole processes: from the start of Python to an image on disk, and the memory they took.

Each contestant is a program of a few lines that writes what it drew, and on standard output its peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Peak memory: of the process on a CPU, of torch's allocator on a GPU.
_END = """
import json, sys
import numpy as np
np.save(out, images)
torch = sys.modules.get("torch")
if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
    peak = torch.cuda.max_memory_allocated()
elif sys.platform == "linux":
    # Not ru_maxrss: a process inherits its parent's.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    peak = int(status["VmHWM"].split()[0]) * 1024
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({"peak_bytes": peak}))
"""
_TORCH = "import torch\ntorch.set_num_threads(threads)\n"
_GENERATOR = "generator = torch.Generator().manual_seed(seed)\n"

PROGRAMS = {
    "diffusers DDIMPipeline": _TORCH
    + """
from diffusers import DDIMPipeline
pipeline = DDIMPipeline.from_pretrained(diffusers_folder).to(device)
pipeline.set_progress_bar_config(disable=True)
"""
    + _GENERATOR
    + """
output = pipeline(batch_size=batch, generator=generator, num_inference_steps=steps, output_type="np",
                  use_clipped_model_output=True)
images = output.images.transpose(0, 3, 1, 2) * 2 - 1
""",
    "fastddpm.load": _TORCH
    + """
import fastddpm
sampler = fastddpm.load(folder, engine=engine, device=device)
"""
    + _GENERATOR
    + """
images = sampler.sample(batch, noise="torch", generator=generator, progress=False)
images = images.cpu().clamp(-1, 1).numpy()
""",
    "fastddpm.onnx": """
from fastddpm.onnx import OnnxSampler
sampler = OnnxSampler(onnx_folder, "cpu", threads=threads)
images = sampler.sample(seeds=list(range(batch)), progress=False).clip(-1, 1)
""",
}


def run(program: str, out: Path, **variables: Any) -> dict[str, float]:
    """Runs a program to its end in a fresh Python with the same environment.

    Args:
        program: a name in `PROGRAMS`.
        out: the .npy file that it writes.
        **variables: JSON values that it uses.

    Returns:
        What it printed: ``peak_bytes``.

    Raises:
        ImportError: a library that it needs is not installed.
        RuntimeError: it failed otherwise, with the last line of what it said.
    """
    values = {**variables, "out": str(out)}
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    code = "\n".join([*lines, PROGRAMS[program], _END])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise (ImportError if "ModuleNotFoundError" in last else RuntimeError)(f"{program}: {last}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def image(path: Path) -> Tensor:
    """The images that a program wrote, float32 ``(B, C, H, W)``."""
    return torch.from_numpy(np.load(path).astype(np.float32))

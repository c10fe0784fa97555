"""What is there: versions, the card, and its two ceilings: a copy's bandwidth and the rate of products.

python scripts/card/environment.py OUT [--tiny]
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from workload import Part, arguments, median_seconds

from fastddpm.precision import described

NAMES = ("torch", "triton", "numpy", "diffusers", "safetensors", "onnxruntime", "pytest", "pytest-xdist")


def packages() -> dict[str, str | None]:
    """Versions of what is installed."""
    found: dict[str, str | None] = {}
    for name in NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    """Measures, printing and saving each figure as it comes."""
    args = arguments(__doc__)
    part = Part("environment", args.out)
    device = args.device
    part.add({"name": "versions", "python": platform.python_version(), **packages()})
    part.add({"name": "float32 here", "is": described(None, torch.float32, device)})
    if shutil.which("nvidia-smi"):
        done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, check=False, timeout=20)
        print(done.stdout)
    n_bytes = 2**22 if args.tiny else 2**30
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds([lambda: target.copy_(source)], device)
    part.add({"name": "copy, read and written", "bytes_per_s": 2 * n_bytes / seconds})
    side, batch = (256, 1) if args.tiny else (8192, 64)
    for dtype in (torch.bfloat16, torch.float32):
        words = str(dtype).removeprefix("torch.")
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        seconds = median_seconds([lambda a=a, b=b: a @ b], device)
        part.add({"name": f"matrix product {side}^3 {words}", "flop_per_s": 2 * side**3 / seconds})
        x = torch.randn(batch, 256, 16, 16, device=device, dtype=dtype)
        w = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            xs, ws = x.to(memory_format=layout), w.to(memory_format=layout)
            seconds = median_seconds([lambda xs=xs, ws=ws: torch.conv2d(xs, ws, padding=1)], device)
            where = str(layout).removeprefix("torch.")
            name = f"convolution 3x3, 256 to 256, {batch} of 16x16, {words}, {where}"
            part.add({"name": name, "flop_per_s": 2 * x.numel() * 256 * 9 / seconds})


if __name__ == "__main__":
    main()

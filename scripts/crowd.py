"""A crowd of clients against `fastddpm serve`: `python scripts/crowd.py --clients 20 --seconds 60`.

Some requests are malformed, too long, or given up half way. Right is: every answer is 200, 400, 413 or 503
(come back later), every picture is the one that `fastddpm.load(MODEL).sample` draws alone, the service's
memory does not grow, and it ends with 0 on SIGTERM.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import numpy as np
from http_crowd import Crowd  # type: ignore[import-not-found, unused-ignore]
from http_service import Client, wait_for  # type: ignore[import-not-found, unused-ignore]

import fastddpm
from fastddpm.images import to_uint8
from fastddpm.pictures import opened

RIGHT = {200, 400, 413, 503}
GROWTH = 1.1
"""Of resident memory, from the end of a warm-up of a quarter of the time."""


def main() -> None:
    """Prints what was answered and what was wrong; exit code 1 if anything was."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mnist")
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "fastddpm", "serve", arguments.model, "--port", "0"]
    service = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        client = Client(_port(service))
        Crowd(client, clients=arguments.clients, most=None, seconds=arguments.seconds / 4).run()
        before = _resident(service.pid)
        crowd = Crowd(client, clients=arguments.clients, most=None, seconds=arguments.seconds)
        crowd.run()
        after = _resident(service.pid)
    finally:
        service.send_signal(signal.SIGTERM)
        code = service.wait(120)
    sampler = fastddpm.load(arguments.model)
    wrong = [f"a client's error: {error!r}" for error in crowd.errors]
    wrong += [f"status {status}" for status in crowd.statuses if status not in RIGHT]
    wrong += [
        f"another picture: {asked}" for asked, picture in crowd.good if not _is_right(sampler, asked, picture)
    ]
    if after > GROWTH * before:
        wrong.append(f"memory: {after} MiB after {before}")
    if code:
        wrong.append(f"ended with {code}")
    for line in wrong:
        print(f"WRONG {line}")
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(Counter(crowd.statuses).items()))
    print(f"{statuses}; {len(crowd.good)} pictures; {before} -> {after} MiB; {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


def _port(service: subprocess.Popen[str]) -> int:
    """Where it listens, which it says first; returns when it answers."""
    assert service.stdout is not None
    found = re.search(r":(\d+)$", service.stdout.readline().strip())
    if found is None:
        sys.exit("fastddpm serve did not start")
    client = Client(int(found[1]))
    wait_for(lambda: _is_ready(client))
    return client.port


def _is_ready(client: Client) -> bool:
    try:
        return bool(client.get("/v2/health/ready").status == 200)
    except OSError:
        return False


def _resident(process: int) -> int:
    """MiB of a process, on Linux."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) // 1024


def _is_right(sampler: fastddpm.Sampler, asked: dict[str, Any], picture: bytes) -> bool:
    """Whether a picture is the one drawn alone, to the level that it may round to in another batch."""
    given = {name: asked[name] for name in ("method", "num_inference_steps") if name in asked}
    image = sampler.replace(**given).sample(
        seeds=[asked["seed"]],
        class_labels=[asked["class"]],
        guidance_scale=asked["guidance_scale"],
        progress=False,
    )
    with opened(picture) as found:
        pixels = np.asarray(found).reshape(to_uint8(image)[0].shape).astype(int)
    difference = np.abs(pixels - to_uint8(image)[0].astype(int))
    return bool(difference.max() <= 1 and np.mean(difference > 0) < 0.02)


if __name__ == "__main__":
    main()

"""`fastddpm serve --workers ray`: a replica of Ray Serve gives the same images, and ends as it should."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from http_service import Client, wait_for
from networks import make_unet
from test_http import close, pixels_of

import fastddpm
from fastddpm import NoiseSchedule
from fastddpm.model_folder import save_folder

pytest.importorskip("ray.serve")

from fastddpm.serving.http.ray_serve import Replicas

ROOT = Path(__file__).parents[2]
GENERATE = "/v1/images/generations"


def test_replicas_answer_as_one_process_does_and_end_on_a_signal(popen, tmp_path):
    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    folder = save_folder(tmp_path / "tiny", make_unet(), NoiseSchedule.linear(1000), options)
    words = ["serve", str(folder), "--port", "0", "--workers", "ray", "--token", "secret"]
    process = popen(
        [sys.executable, "-m", "fastddpm", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
    )
    line = process.stdout.readline()
    found = re.fullmatch(r"serving tiny at http://127\.0\.0\.1:(\d+)\n", line)
    assert found, line + process.stderr.read()
    assert Client(int(found[1])).get("/v1/models").status == 401
    client = Client(int(found[1]), {"authorization": "Bearer secret"})
    asked = {"seeds": [1, 2], "class_labels": [0, 2], "method": "ddim", "num_inference_steps": 4}
    answer = client.post(GENERATE, {**asked, "response_format": "png"})
    assert answer.status == 200, answer.body
    one = fastddpm.load(folder).replace(method="ddim", num_inference_steps=4)
    images = one.sample(seeds=[2], class_labels=[2], progress=False)
    single = client.get("/v1/images/2.png?class=2&method=ddim&steps=4")
    assert close(pixels_of(single.body), images[0])
    wrong = client.post(GENERATE, {"seeds": []})
    assert (wrong.status, wrong.error[:7]) == (400, "seeds: ")
    submitted = client.get("/metrics").body.decode().partition('submitted_total{model="tiny"} ')[2]
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, GENERATE, {"seed": 3, "num_inference_steps": 900})
        wanted = f'fastddpm_submitted_total{{model="tiny"}} {float(submitted.split()[0]) + 1}'
        wait_for(lambda: wanted.encode() in client.get("/metrics").body)
        process.send_signal(signal.SIGTERM)
        assert long.result(60).status == 200
    assert process.wait(60) == 0


def test_how_many_replicas():
    assert Replicas(3, 3).options() == {"num_replicas": 3}
    scaling = Replicas(1, 4, batch=8).options()["autoscaling_config"]
    assert scaling == {"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 8}
    for wrong, message in (((0, 1), "^replicas: 0 given"), ((2, 1), "^max_replicas: 1 given, 2, the least")):
        with pytest.raises(ValueError, match=message):
            Replicas(*wrong)

"""How the service ends: what was accepted is answered, and nobody new is let in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
from http_service import JSON, Client, live, wait_for
from networks import make_unet
from test_http import make_sampler, pixels_of
from test_http_events import Gate

from fastddpm import NoiseSchedule
from fastddpm.model_folder import save_folder
from fastddpm.serving.http.service import Service

ROOT = Path(__file__).parents[2]
GENERATE = "/v1/images/generations"


@pytest.fixture
def started(popen, tmp_path):
    """Starts `fastddpm serve` on a tiny model: its process and a client."""
    options = {"num_inference_steps": 5, "clip_sample_range": 1.0, "shape": [3, 8, 8]}
    folder = save_folder(tmp_path / "tiny", make_unet(), NoiseSchedule.linear(1000), options)

    def start(*words):
        command = [sys.executable, "-m", "fastddpm", "serve", str(folder), "--port", "0", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
        line = process.stdout.readline()
        found = re.fullmatch(r"serving tiny at http://127\.0\.0\.1:(\d+)\n", line)
        assert found, line + process.stderr.read()
        client = Client(int(found[1]))
        wait_for(lambda: _answers(client))
        return process, client

    return start


def _answers(client):
    try:
        return client.get("/v2/health/ready").status == 200
    except OSError:
        return False


def test_a_signal_loses_no_request_that_was_accepted(started):
    process, client = started("--max-batch", "2")
    asked = [{"seed": seed, "num_inference_steps": 150 + seed, "response_format": "png"} for seed in range(6)]
    connections = [client.sent(GENERATE, one) for one in asked]
    wait_for(lambda: b'fastddpm_submitted_total{model="tiny"} 6.0' in client.get("/metrics").body)
    process.send_signal(signal.SIGTERM)
    answers = [connection.getresponse() for connection in connections]
    assert [answer.status for answer in answers] == [200] * 6
    for answer in answers:
        assert pixels_of(answer.read()).shape == (8, 8, 3)
    assert process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        client.get("/v2/health/live")
    said = process.stderr.read()
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["message"] for line in lines][-1] == "stopped"
    [stopping] = [line for line in lines if line["message"] == "stopping"]
    assert stopping["running"] + stopping["waiting"] >= 2
    assert sum(line.get("images", 0) for line in lines) == 6


def test_what_takes_longer_than_the_grace_is_answered_503(started):
    process, client = started("--grace", "0.2", "--max-batch", "1")
    asked = [{"seed": seed, "num_inference_steps": 1000, "method": "ddpm"} for seed in range(20)]
    connections = [client.sent(GENERATE, one) for one in asked]
    wait_for(lambda: b'fastddpm_submitted_total{model="tiny"} 20.0' in client.get("/metrics").body)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    answers = [connection.getresponse() for connection in connections]
    assert {answer.status for answer in answers} <= {200, 503}
    assert answers[-1].status == 503
    assert answers[-1].getheader("retry-after") == "5"
    assert json.loads(answers[-1].read())["error"].startswith("this service is being stopped; ")
    assert process.wait(30) == 0
    assert time.monotonic() - began < 10


def test_once_it_is_stopping_it_is_not_ready_and_takes_nothing_more():
    """Over connections that were there before."""
    import http.client

    gate = Gate()
    with live(Service({"tiny": make_sampler(gate)})) as client:
        waits = client.sent(GENERATE, {"seed": 1})
        assert gate.reached.wait(30)
        kept = http.client.HTTPConnection("127.0.0.1", client.port, timeout=30)
        client.service.is_stopping = True
        for method, path, body, status in (
            ("GET", "/v2/health/ready", None, 503),
            ("GET", "/v2/models/tiny/ready", None, 503),
            ("POST", GENERATE, b'{"seed": 2}', 503),
            ("GET", "/v2/health/live", None, 200),
        ):
            kept.request(method, path, body, JSON)
            answer = kept.getresponse()
            answer.read()
            assert answer.status == status, path
        kept.close()
        client.server.should_exit = True
        threading.Timer(0.3, gate.open.set).start()
        answer = waits.getresponse()
        assert answer.status == 200
        answer.read()
        waits.close()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "--port: 99999 given"),
        (["--max-images", "0"], "--max-images: 0 given"),
        (["--max-body", "0"], "--max-body: 0 given"),
        (["--deadline", "-1"], "--deadline: -1.0 given"),
        (["--grace", "nan"], "--grace: nan given"),
        (["--workers", "many"], "--workers: 'many' given"),
        (["--replicas", "2"], "--replicas: a number without --workers ray given"),
        (["--workers", "ray", "--replicas", "0"], "--replicas: 0 given"),
        (["--workers", "ray", "--replicas", "3", "--max-replicas", "2"], "--max-replicas: 2 given, 3"),
        (["--log-level", "loud"], "--log-level: 'loud' given"),
        (["--token", "a b"], "--token: one of 3 characters given"),
        (["--host", "nowhere.invalid"], "--host: 'nowhere.invalid'"),
        (["mnist", "mnist"], "MODEL: two models by the name 'mnist' given"),
        (["a/b=mnist"], "MODEL: the name 'a/b' given"),
        (["a b=mnist"], "MODEL: the name 'a b' given"),
        (["mnist_gone"], "'mnist_gone': not found"),
        (["--device", "tpu"], "--device: 'tpu' given"),
        (["--engine", "warp"], "--engine: 'warp' given"),
        (["--precision", "fp8"], "fp8"),
    ],
)
def test_what_the_command_refuses(run, words, said):
    code, out, err = run("serve", *([] if "--port" in words else ["--port", "0"]), *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_an_address_that_is_taken(run):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", "--port", taken.getsockname()[1])
    assert code == 2
    assert re.fullmatch(
        r"fastddpm: error: 127\.0\.0\.1:\d+: cannot be listened at \(Address already in use\)\n", err
    )


def test_names_of_models():
    from fastddpm.cli.serve import is_loopback, named

    assert named(["mnist", "digits=mnist", "runs/photos", "x/y.pth", "org/face@main"]) == {
        "mnist": "mnist",
        "digits": "mnist",
        "photos": "runs/photos",
        "y": "x/y.pth",
        "face": "org/face@main",
    }
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert not is_loopback("0.0.0.0")


def test_another_host_without_a_token_is_warned_of(monkeypatch, run):
    monkeypatch.delenv("FASTDDPM_TOKEN", raising=False)
    monkeypatch.setattr("fastddpm.serving.http.server.run", lambda *_, **__: None)
    with pytest.warns(UserWarning, match=r"^host: 0\.0\.0\.0 without a token: whoever reaches it may draw"):
        run("serve", "--port", "0", "--host", "0.0.0.0")
    for words, environment in (
        (["--token", "x"], {}),
        ([], {"FASTDDPM_TOKEN": "x"}),
        (["--host", "::1"], {}),
    ):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _, out, _ = run("serve", "--port", "0", "--host", "0.0.0.0", *words)
        assert out.startswith("serving mnist at http://")

"""`push_to_hub`: what arrives at a server that takes and gives files as the Hub does, and what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from networks import make_unet

import fastddpm
from fastddpm import BadArgument, CheckpointError, NoiseSchedule, Sampler
from fastddpm.cli import app
from fastddpm.tasks import SuperResolve, write_task

OPTIONS = {"method": "ddim", "num_inference_steps": 2, "clip_sample_range": 1.0, "shape": [3, 8, 8]}


COMMIT = "ab" * 20
TOKEN = "hf_secret"


class Server(ThreadingHTTPServer):
    """Takes repositories and commits of files, and gives the last to whoever has the token.

    Says no to ``closed/...``.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict] = {}
        self.commits: list[dict] = []
        self.tokens: list[str | None] = []
        self.given: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        self.server.tokens.append(self.headers["authorization"])
        lines = [json.loads(line) for line in body.splitlines() if line]
        if self.path == "/api/repos/create":
            name = f"{lines[0]['organization']}/{lines[0]['name']}"
            if name.startswith("closed/"):
                return self._answer({"error": "no"}, 403)
            self.server.repositories[name] = lines[0]
            return self._answer({"url": f"{self._place()}/{name}"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in lines[0]["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in self.path:
            files = {
                one["value"]["path"]: base64.b64decode(one["value"]["content"])
                for one in lines
                if one["key"] == "file"
            }
            header = next(one["value"] for one in lines if one["key"] == "header")
            self.server.commits.append({"path": self.path, "files": files, **header})
            name = self.path.removeprefix("/api/models").split("/commit")[0]
            url = f"{self._place()}{name}/commit/abc"
            return self._answer({"commitUrl": url, "commitOid": "abc", "success": True})
        return self._answer({"errors": [], "warnings": []})  # of the card's metadata

    def do_GET(self):
        place = r"(?:/api/models)?/([\w-]+/[\w-]+)/(revision|tree|resolve)/\w+/?(.*)"
        found = re.fullmatch(place, self.path.partition("?")[0])
        if found is None or not self.server.commits:
            return self._answer({"error": "nothing here"}, 404)
        if self.headers["authorization"] != f"Bearer {TOKEN}":  # as if it were not there
            return self._answer({"error": "nothing here"}, 401, {"X-Error-Code": "RepoNotFound"})
        files, (name, kind, path) = self.server.commits[-1]["files"], found.groups()
        if kind == "revision":
            return self._answer(
                {"id": name, "sha": COMMIT, "siblings": [{"rfilename": one} for one in files]}
            )
        sums = {one: hashlib.sha1(content).hexdigest() for one, content in files.items()}
        if kind == "tree":
            return self._answer(
                [
                    {"type": "file", "path": one, "size": len(content), "oid": sums[one]}
                    for one, content in files.items()
                ]
            )
        if self.command == "GET":
            self.server.given.append(path)
        about = {"X-Repo-Commit": COMMIT, "ETag": f'"{sums[path]}"'}
        return self._answer(files[path], 200, about)

    do_HEAD = do_GET

    def _place(self):
        return f"http://{self.headers['host']}"

    def _answer(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    files = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def make_sampler(**options):
    return Sampler(make_unet(), NoiseSchedule.linear(20), **{**OPTIONS, **options})


def arrived(hub, folder):
    """The files of the last commit, as a folder."""
    for name, content in hub.commits[-1]["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_a_sampler_arrives_as_a_folder_that_draws_its_images(hub, tmp_path):
    sampler = make_sampler(class_names=["cat", "dog", "cow", "owl"], engine="eager")
    url = fastddpm.push_to_hub(
        sampler,
        "some-lab/animals",
        private=True,
        token=TOKEN,
        message="first",
        license="apache-2.0",
        dataset="some-lab/photos",
        metrics={"fid": 3.25},
    )
    assert url == f"http://127.0.0.1:{hub.server_port}/some-lab/animals/commit/abc"
    made = hub.repositories["some-lab/animals"]  # releases of huggingface_hub say it in two ways
    assert made.get("private") is True or made.get("visibility") == "private"
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert hub.commits[0]["summary"] == "first"
    folder = arrived(hub, tmp_path / "there")
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "sampler.json",
        "schedule.json",
    ]
    again = fastddpm.load(folder)
    wanted = {"seeds": [1, 2], "class_labels": ["dog", 2], "progress": False}
    for name, tensor in sampler.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor)
    assert (again.sample(**wanted) - sampler.sample(**wanted)).abs().max() < 1e-5
    assert "engine" not in json.loads((folder / "sampler.json").read_text())
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert (found["library_name"], found["license"]) == ("fastddpm", "apache-2.0")
    assert {"diffusion", "ddpm", "ddim"} == set(found["tags"])
    (result,) = found["model-index"][0]["results"]
    assert result["dataset"]["name"] == "some-lab/photos"
    assert result["metrics"] == [{"type": "fid", "value": 3.25}]
    assert 'fastddpm.load("some-lab/animals")' in text
    assert "4: cat, dog, cow, owl" in text


def test_what_was_sent_is_fetched_by_name_and_then_asked_for_no_more(hub, tmp_path):
    """By huggingface_hub itself: its requests, its files on the way, its cache."""
    sampler, name, cache = make_sampler(engine="eager"), "some-lab/animals", {"cache_dir": tmp_path / "cache"}
    fastddpm.push_to_hub(sampler, name, private=True, token=TOKEN)
    with pytest.raises(CheckpointError, match=f"^{name}: not found here or on the Hugging Face Hub"):
        fastddpm.load(name, token="hf_other", **cache)
    assert hub.given == []
    again = fastddpm.load(name, token=TOKEN, engine="eager", **cache)
    needed = ["config.json", "model.safetensors", "sampler.json", "schedule.json"]
    assert sorted(hub.given) == needed
    wanted = {"seeds": [1, 2], "class_labels": 1, "progress": False}
    assert (again.sample(**wanted) - sampler.sample(**wanted)).abs().max() < 1e-5
    for option in (
        {"token": TOKEN},
        {"local_files_only": True},
        {"local_files_only": True, "revision": COMMIT},
    ):
        assert fastddpm.load(name, **option, **cache).shape == sampler.shape
    assert sorted(hub.given) == needed


def test_the_command_sends_a_folder_with_its_task_and_its_card(hub, tmp_path, monkeypatch, capsys):
    sampler = make_sampler()
    folder = fastddpm.save_folder(tmp_path / "model", sampler.model, sampler.schedule, OPTIONS)
    write_task(folder, SuperResolve(factor=2))
    (folder / "README.md").write_text("# Mine\n")
    words = ["push", str(folder), "some-lab/larger", "--revision", "next", "--license", "mit"]
    monkeypatch.setattr(sys, "argv", ["fastddpm", *words])
    with pytest.raises(SystemExit) as end:
        app.main()
    assert end.value.code == 0
    address = f"http://127.0.0.1:{hub.server_port}/some-lab/larger/commit/abc"
    assert capsys.readouterr().out == f"{folder} -> {address}\n"
    assert hub.commits[0]["path"].endswith("/commit/next")
    there = arrived(hub, tmp_path / "there")
    assert (there / "README.md").read_text() == "# Mine\n"
    assert (there / "task.json").read_text() == (folder / "task.json").read_text()


def test_what_is_refused(hub):
    sampler = make_sampler()
    for name in ("animals", "a/b/c", "some-lab/animals@v1"):
        with pytest.raises(BadArgument, match=r"^repository: .*'organisation/name' accepted"):
            fastddpm.push_to_hub(sampler, name)
    with pytest.raises(BadArgument, match=r"^dataset: None with metrics fid given"):
        fastddpm.push_to_hub(sampler, "some-lab/animals", metrics={"fid": 1.0})
    with pytest.raises(BadArgument, match=r"^source: a sampler of a function given, one of our UNet"):
        fastddpm.push_to_hub(Sampler(lambda x, t: x, NoiseSchedule.linear(20)), "some-lab/animals")
    assert hub.repositories == {}
    with pytest.raises(CheckpointError, match="closed/door: the Hugging Face Hub does not let this account"):
        fastddpm.push_to_hub(sampler, "closed/door", token=TOKEN)
    assert hub.commits == []

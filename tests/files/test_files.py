"""Files and folders that are whole or not there, what is taken away, and who may write where."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from job_cases import contents, start
from networks import make_unet
from safetensors.torch import load_file, save_file

from fastddpm import NoiseSchedule, files, save_folder, temporaries
from fastddpm.export.folder import new_export
from fastddpm.files import (
    check_replaceable,
    made_folder,
    replacing,
    replacing_folder,
    write_tensors,
)
from fastddpm.locks import LOCK, FolderInUse, exclusive
from fastddpm.temporaries import remove_leftovers

DISK = 2**20

# What a killed process of this machine leaves, and one of another machine: PLACE-PROCESS-TOKEN-NAME.
ENDED = ".fastddpm-{place}-{process:x}-0123abcd-00001.npz"
ELSEWHERE = ".fastddpm-00000000-{process:x}-0123abcd-00001.npz"
# Near misses of that pattern, and what people have.
FOREIGN = (
    ".pre-commit-config.yaml",
    ".oh-my-zsh/themes/mine",
    ".env-local",
    ".00000.npz-abc123",
    ".fastddpm-notes",
    ".fastddpm-{place}-{process:x}-0123abc-00001.npz",
    ".fastddpm-{place}-{process:x}-0123abcd-",
    "fastddpm-{place}-{process:x}-0123abcd-00001.npz",
)


def ended_process() -> int:
    """The number of a process that has been and gone."""
    process = start(lambda: None)
    process.join()
    return process.pid


def named(pattern: str, process: int) -> str:
    return pattern.format(place=temporaries._place(), process=process)


def people_s_files(folder: Path) -> dict[str, bytes]:
    process = ended_process()
    for name in FOREIGN:
        path = folder / named(name, process)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return contents(folder)


def test_only_leftovers_go(tmp_path):
    theirs, process = people_s_files(tmp_path), ended_process()
    (tmp_path / named(ENDED, process)).write_text("half")
    (tmp_path / named(ENDED, process).replace("00001.npz", "00002")).mkdir()
    (tmp_path / named(ELSEWHERE, process)).write_text("of another machine")
    (tmp_path / named(ENDED, os.getppid())).write_text("of a process that runs")
    remove_leftovers(tmp_path)
    left = {*theirs, named(ELSEWHERE, process), named(ENDED, os.getppid())}
    assert set(contents(tmp_path)) == left
    assert not list(tmp_path.glob("*00002"))
    remove_leftovers(tmp_path, alone=True)
    assert contents(tmp_path) == theirs


def test_the_first_file_written_to_a_folder_takes_leftovers_away(tmp_path):
    theirs = people_s_files(tmp_path)
    (tmp_path / named(ENDED, ended_process())).write_text("half")
    # A namesake of this process, in an earlier life of the machine's numbers.
    (tmp_path / named(ENDED, os.getpid())).write_text("half")
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert contents(tmp_path) == {**theirs, "a.txt": b"whole"}


def test_a_file_has_the_mode_of_others_whatever_made_it(tmp_path):
    (tmp_path / "plain").write_text("")
    with replacing(tmp_path / "ours.safetensors") as temporary:
        save_file({"a": torch.ones(2)}, temporary)
        temporary.chmod(0o600)
    plain, ours = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "ours.safetensors"))
    assert ours == plain


def test_the_umask_is_never_changed(tmp_path, monkeypatch):
    """It is the whole process's: a thread that writes a file meanwhile would make it for everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("umask was called"))
    with replacing(tmp_path / "a") as temporary:
        temporary.write_text("a")
    with replacing_folder(tmp_path / "b") as temporary:
        (temporary / "c").write_text("c")
    assert contents(tmp_path) == {"a": b"a", "b/c": b"c"}


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def named_now(path, target):
        events.append("rename")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named_now)
    with replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert events == [temporary.name, "rename", tmp_path.name]


@pytest.mark.parametrize("made", [replacing, replacing_folder])
def test_an_interrupt_leaves_nothing_whenever_it_comes(tmp_path, made):
    """KeyboardInterrupt at every line that is run between asking for a temporary and its end."""

    def write():
        with made(tmp_path / "a") as temporary:
            (temporary / "b" if temporary.is_dir() else temporary).write_text("whole")

    lines = 0

    def interrupting(at):
        def trace(frame, event, argument):
            nonlocal lines
            if event == "line" and frame.f_code.co_filename in (files.__file__, temporaries.__file__):
                lines += 1
                if lines == at:
                    raise KeyboardInterrupt
            return trace

        return trace

    write()
    whole = contents(tmp_path)
    for at in range(1, 200):
        lines = 0
        for path in tmp_path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        before = sys.gettrace()
        sys.settrace(interrupting(at))
        try:
            write()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert contents(tmp_path) in (whole, {}), f"line {at}"
        assert [path.name for path in tmp_path.iterdir()] in (["a"], [])
        if lines < at:
            break
    assert at > 20


def test_folders_that_were_made_go_again(tmp_path):
    def fail(inside):
        with made_folder(tmp_path / "a" / "b"):
            inside()
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail(lambda: None)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="failed"):
        fail(lambda: (tmp_path / "a" / "theirs").write_text("stays"))
    assert contents(tmp_path) == {"a/theirs": b"stays"}


def test_a_full_disk_is_an_oserror_for_tensors_too(small_disk):
    (small_disk / "ballast").write_bytes(bytes(2**20 - 60_000))
    with pytest.raises(OSError, match="No space left on device") as full, replacing(small_disk / "a") as path:
        write_tensors(path, {"a": torch.zeros(2**20)})
    assert full.value.errno == 28
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


@pytest.mark.parametrize("context", [replacing, replacing_folder])
@pytest.mark.parametrize("name", [None, "the temporary", "another"])
def test_an_error_of_a_full_disk_names_the_file_that_was_to_be(tmp_path, context, name):
    target, other = tmp_path / "a.png", tmp_path / "other.png"
    with pytest.raises(OSError, match="No space left") as full, context(target) as temporary:
        raise OSError(28, "No space left on device", {None: None, "another": str(other)}.get(name, temporary))
    assert full.value.filename == str(other if name == "another" else target)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_not_written_over_somebody_else_s(tmp_path):
    model = make_unet(), NoiseSchedule.linear(10), {"shape": [3, 8, 8]}
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"holds config.json of something else, given, a new folder"):
        save_folder(tmp_path, *model)
    assert contents(tmp_path) == before
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("stays")
    save_folder(tmp_path / "own", *model)
    save_folder(tmp_path / "own", *model)  # one of ours is replaced
    assert len(load_file(tmp_path / "own" / "model.safetensors")) > 10
    assert (tmp_path / "own" / "notes.txt").read_text() == "stays"


def test_a_file_that_only_says_so_is_not_ours(tmp_path):
    for name in ("config.json", "weights.safetensors"):
        (tmp_path / name).write_text("fastddpm")
    with pytest.raises(ValueError, match=r"config\.json"):
        check_replaceable(tmp_path, ["config.json"], tmp_path / "weights.safetensors")


# ------------------------------------------------------------------ exports


def export(folder: Path, names=("denoiser.onnx", "README.md"), text="new"):
    with new_export(folder) as temporary:
        for name in names:
            (temporary / name).write_text(text)
        about = {"format": "fastddpm-onnx", "files": {name: {} for name in names if name != "README.md"}}
        (temporary / "export.json").write_text(json.dumps(about))


def test_exporting_again_replaces_what_the_export_wrote_and_nothing_else(tmp_path):
    folder = tmp_path / "onnx"
    export(folder, ("denoiser.onnx", "old.onnx", "README.md"), text="old")
    (folder / "engines").mkdir()
    for name in ("notes.txt", "engines/trt.plan", ".hidden"):
        (folder / name).write_text("theirs")
    export(folder)
    found = contents(folder)
    assert {name for name, text in found.items() if text == b"theirs"} == {
        "notes.txt",
        "engines/trt.plan",
        ".hidden",
    }
    assert {name for name, text in found.items() if text == b"new"} == {"denoiser.onnx", "README.md"}
    assert len(found) == 6  # and export.json; old.onnx, which the old export listed, has gone


def test_a_hostile_description_names_no_file_outside(tmp_path):
    folder = tmp_path / "onnx"
    export(folder)
    (tmp_path / "victim").write_text("stays")
    outside = {name: {} for name in ("../victim", str(tmp_path / "victim"), "..", ".", "")}
    (folder / "export.json").write_text(json.dumps({"format": "fastddpm-onnx", "files": outside}))
    (folder / "denoiser.onnx").unlink()
    export(folder)
    assert (tmp_path / "victim").read_text() == "stays"


def test_a_person_s_file_of_the_name_of_a_new_one_is_refused(tmp_path):
    export(tmp_path)
    (tmp_path / "step_guided.onnx").write_text("theirs")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"whose step_guided.onnx is not of the export there"):
        export(tmp_path, ("denoiser.onnx", "step_guided.onnx"))
    assert contents(tmp_path) == before


def test_what_a_killed_export_left_is_no_other_file(tmp_path):
    left = tmp_path / named(".fastddpm-{place}-{process:x}-0123abcd-export", ended_process())
    left.mkdir()
    (left / "denoiser.onnx").write_text("half")
    (tmp_path / LOCK).touch()
    export(tmp_path)
    assert sorted(contents(tmp_path)) == ["README.md", "denoiser.onnx", "export.json"]


# ------------------------------------------------------------------ locks

HOLD = """
import sys
from pathlib import Path
from fastddpm.locks import exclusive
with exclusive(Path(sys.argv[1]), "outdir", "job"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_held_by_one_process_and_free_when_that_is_killed(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(FolderInUse, match=r"outdir: .*, where another job is running, given, another folder"),
        exclusive(tmp_path, "outdir", "job"),
    ):
        pass
    other.kill()
    other.communicate()
    with exclusive(tmp_path, "outdir", "job"):
        assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    assert list(tmp_path.iterdir()) == []


def test_one_export_a_folder(tmp_path):
    with exclusive(tmp_path, "folder", "export"):
        before = contents(tmp_path)
        with pytest.raises(FolderInUse, match=r"folder: .* another export is running"):
            export(tmp_path)
        assert contents(tmp_path) == before

"""Lists of arguments for the command line: sound ones, and how they are damaged; and what runs them.

`sound(folder)` writes what the commands read and gives a list of each; `mutated` damages one; `run` runs the
command line in this process with the parts replaced that would take minutes: a training's steps, an
export's network, and the examinations and measurements of `doctor` and `bench`.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

WORDS = (
    *("", " ", "-", "--", "x", "-1", "0", "1", "3", "0.5", "-0.0", "1e9", "nan", "-inf", "1e400", "9" * 400),
    *(
        "65536",
        "2147483648",
        "9223372036854775807",
        "9223372036854775808",
        "1,2",
        "1,,2",
        "5-3",
        "0-",
        "1,1,1",
    ),
    *(
        "0,65536",
        "16,16",
        "a,b,c",
        "\x1b[31m",
        "a\nb",
        "\udc80",
        "é",
        "y" * 5000,
        "y " * 3000,
        "[]",
        "{}",
        "None",
    ),
    *("cpu:0", "cuda:99", "float16", "npz", "linear", "ddim", "dpmpp_2m", "--help", "--nothing", "--steps"),
    *(
        "fifo",
        "fifo.png",
        "fifo.npz",
        "fifo.json",
        "fifo.pth",
        "/dev/zero",
        "loop",
        "gone/x.png",
        "here",
        "..",
    ),
    *("zero.png", "zero.npz", "latin.json", "list.json", "here/a.png", "model", "pictures", "a.npz", "a.pth"),
)
"""What stands in the place of a word: numbers of every size, junk, and names of what is no regular file."""
OPTIONS = (
    *("--seeds", "--class", "--method", "--steps", "--eta", "--guidance", "--batch", "--shape", "--out"),
    *(
        "--outdir",
        "--format",
        "--shard-size",
        "--workers",
        "--threads",
        "--merge",
        "--trajectory",
        "--device",
    ),
    *("--engine", "--dtype", "--precision", "--config", "--backend", "--to", "--samples", "--mean", "--seed"),
    *(
        "--model",
        "--mask",
        "--size",
        "--channels",
        "--shift",
        "--lr",
        "--ema",
        "--loss",
        "--schedule",
        "--task",
    ),
    *(
        "--factor",
        "--blur",
        "--sigma",
        "--length",
        "--noise",
        "--gain",
        "--base-channels",
        "--mults",
        "--blocks",
    ),
    *("--json", "--from", "--compare", "--subjects", "--features", "--weights", "--reference", "--data"),
    *(
        "--max-parameters",
        "--warmup",
        "--accumulate",
        "--dropout",
        "--checkpoint-every",
        "--workers",
        "--no-ema",
        "--resume",
    ),
)
GIVEN = {
    "num_groups": 4,
    "activation": "silu",
    "time_scale": 1.0,
    "schedule": {"name": "linear", "parameters": {"num_train_timesteps": 20}},
}
MOST = 300
"""Characters of an error, whatever was given."""
_ONCE = "--seeds 0-1 --steps 1 --method ddim --batch 2 --device cpu --engine eager"
_DRAWN = "--steps 1 --method ddim --device cpu --engine eager --seed 3"
_TRAINED = "train --out run --data pictures --size 8 --steps 1 --batch 2"
LISTS = (
    f"sample model {_ONCE} --eta 0.5 --guidance 1 --dtype float32 --out a.png",
    f"sample model {_ONCE} --precision bf16 --trajectory way.gif",
    "sample model --seeds 0-3 --steps 1 --batch 2 --outdir job --format npz --shard-size 2 --merge",
    f"sample a.pth {_ONCE} --config given.json --shape 1,8,8 --out a.png",
    "sample onnx --backend onnx --seeds 0-1 --steps 1 --method ddim --eta 0 --device cpu --out a.png",
    "sample onnx --backend onnx --seeds 0-1 --steps 2 --method lms --order 2 --device cpu --out a.png",
    "convert a.pth converted --config given.json --format fastddpm --to fastddpm",
    "convert model pipeline --to diffusers --no-ema",
    "export model --out onnx --dtype float32 --shape 1,8,8 --no-verify",
    "export model --out onnx --method unipc --steps 3 --spacing karras --order 3 --no-verify",
    "evaluate pictures --reference a.npz --features digits --batch 2 --device cpu",
    "evaluate a.npz --reference pictures --features inception --weights a.pth --batch 2 --device cpu",
    f"super-resolve a.png b.png --model super --samples 2 --mean {_DRAWN}",
    f"super-resolve pictures restored --model super {_DRAWN}",
    f"deblur a.png b.png --model super {_DRAWN}",
    f"inpaint a.png b.png --mask a.png --model model {_DRAWN}",
    f"colorize a.png b.png --model super {_DRAWN}",
    f"{_TRAINED} --base-channels 8 --mults 1,2 --blocks 1 --lr 1e-3 --ema 0.9 --class-dropout 0",
    f"{_TRAINED} --base-channels 8 --task sr --factor 2 --gain 1 --time-input noise_level",
    f"{_TRAINED} --task deblur --blur gaussian --sigma 1 --noise 0.1 --seed 3 --channels 3",
    f"{_TRAINED} --task deblur --blur motion --length 3 --flip --shift 1 --no-mid-attention",
    "train --out run --data a.arrow --size 8 --schedule cosine --loss huber --prediction sample",
    "doctor --json doctor.json --device cpu",
    "bench --quick --out report --json results.json --device cpu --threads 1 --subjects step",
    "bench --from list.json --out report --compare list.json",
)


def mutated(draw: Any) -> list[str]:
    """A list of arguments, damaged in one place or two."""
    words = draw(st.sampled_from(LISTS)).split()
    for _ in range(draw(st.integers(1, 2))):
        at = draw(st.integers(1, len(words) - 1)) if len(words) > 1 else 0
        how = draw(
            st.sampled_from(("word", "word", "word", "word", "option", "text", "twice", "swap", "drop"))
        )
        if how == "word":
            words[at] = draw(st.sampled_from(WORDS))
        elif how == "option":
            words[at:at] = [draw(st.sampled_from(OPTIONS)), draw(st.sampled_from(WORDS))]
        elif how == "text":
            words[at] = draw(st.text(st.characters(exclude_characters="\0"), max_size=12))
        elif how == "twice":
            words.append(words[at])
        elif how == "swap":
            other = draw(st.integers(0, len(words) - 1))
            words[at], words[other] = words[other], words[at]
        elif words[at].startswith("-"):
            del words[at]
    return words


def sound(target: Path, written: Path) -> None:
    """Writes what the lists name into a new folder, from what `fuzz_samples` has written."""
    target.mkdir()
    for source, name in (("model", "model"), ("onnx", "onnx"), ("super", "super")):
        shutil.copytree(written / source, target / name)
    (target / "model" / "task.json").unlink()
    shutil.copy(written / "states" / "ours.pth", target / "a.pth")
    shutil.copy(written / "tables" / "a.arrow", target / "a.arrow")
    (target / "given.json").write_text(json.dumps({"image_size": 8, **GIVEN}))
    (target / "list.json").write_text("[1]")
    (target / "latin.json").write_bytes(b'{"\xe9": 1}')
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    (target / "pictures").mkdir()
    for index, levels in enumerate(pixels):
        Image.fromarray(levels).save(target / "pictures" / f"{index}.png")
    shutil.copy(target / "pictures" / "0.png", target / "a.png")
    np.savez(target / "a.npz", arr_0=pixels[..., None])
    (target / "here").mkdir()
    for name in ("fifo", "fifo.png", "fifo.npz", "fifo.json", "fifo.pth"):
        os.mkfifo(target / name)
    for name, source in (("loop", "loop"), ("zero.png", "/dev/zero"), ("zero.npz", "/dev/zero")):
        (target / name).symlink_to(source)


def run(words: list[str]) -> str:
    """Runs the command line in the current folder; why it did not do what was asked, or nothing.

    Raises:
        AssertionError: another exit code than 0, 1 and 2, a traceback, or a failure without one line that is
            short and says why.
    """
    from fastddpm.cli import app

    out, errors = io.StringIO(), io.StringIO()
    with (
        _without_work(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        mock.patch.object(sys, "argv", ["fastddpm", *words]),
        pytest.raises(SystemExit) as stop,
    ):
        app.main()
    code = stop.value.code
    said = errors.getvalue()
    assert code in (0, 1, 2), f"exit code {code}: {said[-500:]}"
    assert "Traceback" not in said, said[-2000:]
    message = ""
    if code == 2:
        lines = [line for line in re.split(r"[\r\n]", said) if line.startswith("fastddpm: error: ")]
        assert len(lines) == 1, f"{len(lines)} lines say why: {said[-500:]!r}"
        assert said.endswith(lines[0] + "\n"), said[-500:]
        message = lines[0].removeprefix("fastddpm: error: ")
        assert message, "nothing is said"
        assert len(message) < MOST, f"{len(message)} characters: {message[:200]} ... {message[-100:]}"
        assert message.isprintable(), repr(message[:300])
    return message


@contextlib.contextmanager
def _without_work() -> Iterator[None]:
    """Without what takes minutes on purpose."""
    import fastddpm.doctor
    import fastddpm.export
    import fastddpm.training
    from fastddpm.doctor import Examination

    with contextlib.ExitStack() as stack:
        for owner, name, stand_in in (
            (fastddpm.training.Trainer, "train", lambda self, **_: self.run),
            (fastddpm.doctor, "examine", lambda place, *_: Examination(str(place))),
            (fastddpm.export, "export_network", _refuse),
        ):
            stack.enter_context(mock.patch.object(owner, name, stand_in))
        with contextlib.suppress(ImportError):
            from fastddpm_bench import session

            stack.enter_context(mock.patch.object(session, "measure", _refuse))
        yield


def _refuse(*_: object, **__: object) -> None:
    raise ValueError("this is where the work begins")

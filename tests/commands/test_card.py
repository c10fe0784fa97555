"""The command in the card of the model in the box, shortened to a minute: from data to samples."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

import fastddpm

CARD = Path(fastddpm.__file__).parent / "assets" / "mnist" / "README.md"
# What keeps the test under a minute on one slow core; everything else is the card's. Each checkpoint
# validates on 500 digits and draws 40 in 50 steps, which costs more than the training between, and on a CPU
# that only emulates bfloat16 three minutes.
SHORT = {"--steps": "40", "--batch": "16", "--checkpoint-every": "20", "--warmup": "5"}
SHORT |= {"--mixed-precision": "no"}


def command_of_the_card() -> list[str]:
    """The words of the one `fastddpm train` in the card's fenced blocks, without `fastddpm`."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", CARD.read_text(), re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [words[1:] for line in lines if (words := shlex.split(line))[:2] == ["fastddpm", "train"]]
    assert len(commands) == 1, f"{CARD}: {len(commands)} `fastddpm train` in fenced blocks, one expected"
    return commands[0]


def shortened(words: list[str], out: Path) -> list[str]:
    """The command without compilation, and with small values after the card's: the last one counts."""
    changes = {"--out": str(out), **SHORT}
    return [
        *(word for word in words if word != "--compile"),
        *(word for pair in changes.items() for word in pair),
    ]


def fastddpm_command(*words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastddpm", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_command_of_the_card_goes_from_data_to_samples(tmp_path):
    command = shortened(command_of_the_card(), tmp_path / "run")
    fastddpm_command(*command)
    first, last = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open())
    assert (first["step"], last["step"]) == (20, 40)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["validation_loss"] < first["validation_loss"]
    model, folder = tmp_path / "run" / "model", tmp_path / "digits"
    fastddpm_command("sample", model, "--seeds", "0-3", "--steps", "5", "--outdir", folder)
    digits = [Image.open(path) for path in sorted(folder.iterdir())]
    assert [digit.size for digit in digits] == [(28, 28)] * 4
    for digit in digits:
        low, high = digit.getextrema()
        assert low < high

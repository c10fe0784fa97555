"""The command in the card of the model in the box, shortened to a minute: from data to samples."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from PIL import Image

import fastddpm

CARD = Path(fastddpm.__file__).parent / "assets" / "mnist" / "README.md"
# What keeps the test under a minute on one slow core; everything else is the card's, but for the samples of
# which a checkpoint draws one. It validates on 500 digits, which costs more than the training between, and on
# a CPU that only emulates bfloat16 three minutes.
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


def test_the_command_of_the_card_goes_from_data_to_samples(run, one_drawn, tmp_path):
    command = shortened(command_of_the_card(), tmp_path / "run")
    code, _, errors = run(*command)
    assert code == 0, errors
    first, last = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").open())
    assert (first["step"], last["step"]) == (20, 40)
    assert last["loss"] < 0.8 * first["loss"]
    assert last["validation_loss"] < first["validation_loss"]
    model, folder = tmp_path / "run" / "model", tmp_path / "digits"
    code, _, errors = run("sample", model, "--seeds", "0-3", "--steps", "5", "--outdir", folder)
    assert code == 0, errors
    digits = [Image.open(path) for path in sorted(folder.iterdir())]
    assert [digit.size for digit in digits] == [(28, 28)] * 4
    for digit in digits:
        low, high = digit.getextrema()
        assert low < high

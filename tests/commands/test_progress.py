"""Progress where there is no terminal: lines of logging, with an estimate; in a notebook tqdm's bar."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from fastddpm.cli import terminal
from fastddpm.progress import Lines, in_words, progress_bar


class Clock:
    """A time that passes when it is told to."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="fastddpm")
    return lambda: [record.getMessage() for record in caplog.records]


def walk(lines, clock, steps, seconds):
    for _ in range(steps):
        clock.seconds += seconds
        lines.advance(1)


def test_an_estimate_after_ten_steps_and_a_line_a_minute(said):
    clock = Clock()
    lines = Lines(1000, "training", "steps", clock)
    walk(lines, clock, 9, 2.0)
    assert said() == []
    walk(lines, clock, 1, 2.0)
    # 9 steps since the clock of the first, 2 s each; 990 are left.
    assert said() == ["training: 10 of 1000 steps, 0.5 a second, about 33 min left"]
    walk(lines, clock, 29, 2.0)
    assert len(said()) == 1
    walk(lines, clock, 1, 2.0)
    assert said()[1] == "training: 40 of 1000 steps, 0.5 a second, about 32 min left"


def test_what_a_run_before_has_done_is_not_counted_as_fast(said):
    clock = Clock()
    lines = Lines(1000, "training", "steps", clock)
    lines.advance(900)
    walk(lines, clock, 9, 1.0)
    assert said() == ["training: 909 of 1000 steps, 1 a second, about 2 min left"]


def test_what_ends_soon_is_not_said(said):
    clock = Clock()
    walk(Lines(20, "sampling", "steps", clock), clock, 20, 0.9)
    assert said() == []


def test_durations_in_words():
    cases = {9.6: "10 s", 89: "89 s", 90: "2 min", 3540: "59 min", 3600: "1 h 0 min", 7260: "2 h 1 min"}
    cases |= {24 * 3600: "1 d 0 h", 100 * 3600: "4 d 4 h"}
    assert {seconds: in_words(seconds) for seconds in cases} == cases


def test_without_a_terminal_there_are_lines_and_nothing_where_none_is_wanted(said, monkeypatch):
    clock = Clock()
    monkeypatch.setattr("fastddpm.progress.Lines.__init__.__defaults__", (clock,))
    for show in (False, True):
        with progress_bar(show, 1000, unit="images") as advance:
            for _ in range(12):
                clock.seconds += 1.0
                advance(1)
    assert said() == ["sampling: 10 of 1000 images, 1 a second, about 16 min left"]


def test_a_command_says_the_lines_as_its_own(monkeypatch, capsys):
    with terminal.logged_lines("fastddpm"):
        logging.getLogger("fastddpm").info("training: %d of 9", 3)
    logging.getLogger("fastddpm").info("nobody hears this")
    assert capsys.readouterr().err == "fastddpm: training: 3 of 9\n"


def test_a_notebook_has_a_bar_of_tqdm(monkeypatch):
    shown = []

    class Bar:
        def __init__(self, total, desc, unit):
            shown.append((total, desc, unit))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            shown.append("closed")

        def update(self, n):
            shown.append(n)

    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    with progress_bar(True, 7, "training") as advance:
        advance(2)
    assert shown == [(7, "training", "step"), 2, "closed"]

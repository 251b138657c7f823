"""Signals that ask a run to end are answered once, where that can be done, and are not forgotten."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from quantmill.commands.console import fail_with_one_line
from quantmill.commands.signals import stoppable, undisguised


def test_a_second_signal_does_not_disturb_the_cleaning_up() -> None:
    cleaned = []

    def clean_up() -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)

    with stoppable(), pytest.raises(KeyboardInterrupt):
        clean_up()
    assert cleaned


def test_an_interrupt_that_python_would_forget_comes_again(capsys: pytest.CaptureFixture[str]) -> None:
    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> None:
        Dropped()
        time.sleep(10)

    with stoppable(), pytest.raises(KeyboardInterrupt):
        work()
    assert capsys.readouterr().err == ""


def test_an_interrupt_while_a_class_is_made_is_an_interrupt(capsys: pytest.CaptureFixture[str]) -> None:
    class Named:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended, fail_with_one_line(), stoppable():
        type("Made", (), {"field": Named()})
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted; nothing unfinished is left\n"


SWALLOWS = """
import signal, time
try:
    signal.raise_signal(signal.SIGTERM)
    time.sleep(0.01)
except BaseException as error:
    raise ImportError("a broken installation?") from None
through = True
"""


def test_an_interrupt_waits_for_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As numpy's C code takes it for a module that cannot be imported."""
    (tmp_path / "swallows_interrupts.py").write_text(SWALLOWS)
    monkeypatch.syspath_prepend(tmp_path)

    def work() -> None:
        importlib.import_module("swallows_interrupts")
        time.sleep(10)

    with stoppable(), pytest.raises(KeyboardInterrupt):
        work()
    assert sys.modules.pop("swallows_interrupts").through


def test_what_waits_is_the_signal_that_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell's background job ignores Ctrl-C, and is ended by another."""
    (tmp_path / "swallows_interrupts.py").write_text(SWALLOWS)
    monkeypatch.syspath_prepend(tmp_path)
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: sent.append(number))
    with stoppable():
        importlib.import_module("swallows_interrupts")
        time.sleep(0.3)
    del sys.modules["swallows_interrupts"]
    assert sent == [signal.SIGTERM]


def test_an_import_without_end_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_imported.py").write_text(
        "import signal, time\nsignal.raise_signal(signal.SIGTERM)\ntime.sleep(30)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("quantmill.commands.signals._PATIENCE", 0.3)
    began = time.monotonic()
    with stoppable(), pytest.raises(KeyboardInterrupt):
        importlib.import_module("never_imported")
    assert 0.3 <= time.monotonic() - began < 20


def test_an_error_with_another_cause_stays_itself() -> None:
    def work() -> None:
        try:
            raise ValueError("1")
        except ValueError as error:
            raise RuntimeError("2") from error

    with pytest.raises(RuntimeError, match="2"), undisguised():
        work()


def test_an_interrupt_comes_again_only_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind that the signal has its own meaning, which is to end the process."""

    class Dropped:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    came: list[int] = []
    monkeypatch.setattr(os, "kill", lambda process, number: came.append(number))
    with stoppable():
        Dropped()
    time.sleep(0.3)
    assert not came


def test_handlers_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with stoppable():
        assert signal.getsignal(signal.SIGHUP) not in before
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before

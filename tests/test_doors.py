"""Work that none may be beside: whoever waits for it and is interrupted does not keep the others out."""

import threading

import pytest

from quantmill.models.doors import Doors


def test_an_interrupt_while_waiting_lets_the_others_in(monkeypatch):
    doors, inside = Doors(), threading.Event()

    def interrupted(ready):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(doors._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt), doors.alone():
            pass

    def enter():
        with doors.among_others():
            inside.set()

    threading.Thread(target=enter, daemon=True).start()
    assert inside.wait(10)

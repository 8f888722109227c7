"""An order is answered as soon as it is done; what the core is told of it follows, whatever the sniffer does."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.component.test_redirector import Controller
from tests.lab.netns import poll

pytestmark = pytest.mark.component
AT_ONCE = 1.0  # seconds; a question to a sniffer that hangs takes 2


class Core:
    """The reader of the command file."""

    def __init__(self, controller: Controller) -> None:
        path = controller.directory / "nagios.cmd"
        os.mkfifo(path, 0o666)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self._text = ""

    def heard(self) -> str:
        while True:
            try:
                self._text += os.read(self._descriptor, 65536).decode()
            except BlockingIOError:
                return self._text


@pytest.fixture
def hanging(controller: Controller) -> Iterator[socket.socket]:
    """A sniffer that takes every question and answers none."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(controller.directory / "run" / "sniffer.sock"))
    sock.listen(100)
    yield sock
    sock.close()


def answered(controller: Controller, service: str, verb: str = "fail-over") -> float:
    """Seconds until the order was answered as done."""
    began = time.monotonic()
    assert controller.flip(service, verb)["flipped"]
    return time.monotonic() - began


@pytest.mark.usefixtures("hanging")
def test_the_answer_does_not_wait_for_the_sniffer(controller: Controller) -> None:
    """Two flips are answered at once, both are reported afterwards, in their order, with the state that they left."""
    core = Core(controller)
    controller.start()
    poll(lambda: "udp4 fail-back;0;" in core.heard(), 10.0, "the state at the start is reported")
    assert max(answered(controller, name) for name in ("tcp4", "udp4")) < AT_ONCE
    assert "udp4 redirect;1;WARNING: fail-over done" not in core.heard(), "its report asks the sniffer first"
    poll(lambda: "udp4 redirect;1;WARNING: fail-over done" in core.heard(), 15.0, "the second flip is reported")
    text = core.heard()
    assert text.index("tcp4 redirect;1;WARNING: fail-over done") < text.index("udp4 redirect;1;WARNING: fail-over done")
    assert "tcp4 fail-back;3;UNKNOWN: not ready to fail back" in text


@pytest.mark.usefixtures("hanging")
def test_a_hold_is_answered_at_once_too(controller: Controller) -> None:
    """On the standby, where its report asks the sniffer; the next answer is not late either."""
    core = Core(controller)
    controller.start()
    answered(controller, "tcp4")
    began = time.monotonic()
    for verb in ("hold", "release", "hold"):
        controller.say(verb, "tcp4", by="eve", reason="work")
    assert time.monotonic() - began < AT_ONCE
    poll(lambda: "held=1" in core.heard(), 20.0, "the hold is reported")


@pytest.mark.usefixtures("hanging")
def test_a_redirector_that_ends_reports_what_it_did(controller: Controller) -> None:
    """SIGTERM right after two orders: it ends soon, and the core has heard of both."""
    core = Core(controller)
    controller.start()
    for name in ("tcp4", "udp4"):
        answered(controller, name)
    began = time.monotonic()
    controller.stop()
    assert time.monotonic() - began < 10.0
    for name in ("tcp4", "udp4"):
        assert f"{name} redirect;1;WARNING: fail-over done" in core.heard()

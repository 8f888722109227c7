"""Results on their way to the core: the command line's form, the FIFO's moods, and what is kept while it is away."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from check_failover.model import PassiveResult, State
from check_failover.transports import TransportError
from check_failover.transports.command_file import PIPE_BUF, CommandFile, command
from check_failover.transports.outbox import LIMIT, Outbox
from tests.lab.netns import poll


def result(text: str = "CRITICAL: gone", service: str = "ldap primary", **more: object) -> PassiveResult:
    fields: dict[str, object] = {"host": "h", "service": service, "state": State.CRITICAL, "text": text, "at": 1000.7}
    return PassiveResult(**(fields | more))  # type: ignore[arg-type]


def test_a_command() -> None:
    """As Nagios documents PROCESS_SERVICE_CHECK_RESULT: whole seconds, one line, escapes in long output."""
    line = command(result(details="first\nback\\slash", perfdata="probes=2"))
    assert (
        line
        == rb"[1000] PROCESS_SERVICE_CHECK_RESULT;h;ldap primary;2;CRITICAL: gone|probes=2\nfirst\nback\\slash" + b"\n"
    )


@given(text=st.text(max_size=6000), details=st.text(max_size=6000), name=st.text(min_size=1, max_size=40))
def test_any_text_is_one_short_line(text: str, details: str, name: str) -> None:
    """Whatever a server said: one line, at most what one write carries whole, and no further field or command."""
    line = command(result(text, name, details=details))
    assert len(line) <= PIPE_BUF
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    line.decode()
    assert line.split(b";")[0].endswith(b"PROCESS_SERVICE_CHECK_RESULT")
    assert line.split(b";")[3:4] == [b"2"]
    assert len(line) < 1000 or not line[:-1].endswith(b"\\") or line[:-1].endswith(b"\\\\")


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "nagios.cmd"
    os.mkfifo(path)
    return path


def fill(writer: int, byte: bytes) -> int:
    """Write until the pipe is full; returns how many bytes."""
    filled = 0
    while True:
        try:
            filled += os.write(writer, byte * PIPE_BUF)
        except BlockingIOError:
            return filled


def test_moods_of_a_fifo(tmp_path: Path, fifo: Path) -> None:
    """No file, no reader, a full pipe, a regular file: each is one line with what to do, and nothing is created."""
    with pytest.raises(TransportError, match="not there: is Nagios running"):
        CommandFile({"command_file": str(tmp_path / "none")}).send([result()])
    assert not (tmp_path / "none").exists()
    with pytest.raises(TransportError, match="no core reads it"):
        CommandFile({"command_file": str(fifo)}).send([result()])
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        fill(writer, b"x")
        with pytest.raises(TransportError, match="full: Nagios does not keep up"):
            CommandFile({"command_file": str(fifo)}).send([result()])
    finally:
        os.close(writer)
        os.close(reader)
    plain = tmp_path / "plain"
    plain.touch()
    with pytest.raises(TransportError, match="not a FIFO"):
        CommandFile({"command_file": str(plain)}).send([result()])
    assert plain.read_bytes() == b""


def test_a_full_pipe_loses_nothing(fifo: Path) -> None:
    """Results that found the pipe full arrive when the core reads again, in order."""
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    filled = fill(writer, b"\n")
    os.close(writer)
    outbox = Outbox(CommandFile({"command_file": str(fifo)}))
    for number in range(5):
        outbox.submit(result(f"CRITICAL: {number}"))
    poll(lambda: not outbox.reachable, 5.0, "the pipe was found full")
    while filled:
        filled -= len(os.read(reader, filled))
    poll(lambda: outbox.waiting() == 0, 10.0, "all were taken")
    lines = os.read(reader, 65536).decode().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == list("01234")
    outbox.close()
    os.close(reader)


class Core:
    """A transport of our own port: takes results, or refuses them."""

    def __init__(self) -> None:
        self.taken: list[PassiveResult] = []
        self.away = threading.Event()

    def send(self, results: Sequence[PassiveResult]) -> None:
        if self.away.is_set():
            raise TransportError("away")
        self.taken += results


def test_kept_over_a_restart(tmp_path: Path) -> None:
    """What the core did not take before we ended is sent by the next start."""
    core = Core()
    core.away.set()
    path = tmp_path / "results.kept"
    outbox = Outbox(core, path)
    outbox.submit(result("CRITICAL: one"))
    outbox.submit(result("CRITICAL: two"))
    outbox.close(patience=0.1)
    core.away.clear()
    outbox = Outbox(core, path)
    poll(lambda: len(core.taken) == 2, 5.0, "both arrived")
    assert [taken.text for taken in core.taken] == ["CRITICAL: one", "CRITICAL: two"]
    assert not path.exists()
    outbox.close()


def test_damaged_kept_results_do_not_stop_us(tmp_path: Path) -> None:
    """A file that a power cut left half written is given up, with a line in the log; the outbox works."""
    path = tmp_path / "results.kept"
    path.write_text('[{"host": "h", "servi')
    core = Core()
    outbox = Outbox(core, path)
    outbox.submit(result())
    poll(lambda: len(core.taken) == 1, 5.0, "the new one arrived")
    outbox.close()


def test_a_long_absence_is_bounded() -> None:
    """While the core is away for days, what is dropped says nothing new: every change of state is kept."""
    core = Core()
    core.away.set()
    outbox = Outbox(core)
    states = [State.OK if number % 100 else State.CRITICAL for number in range(3 * LIMIT)]
    for number, state in enumerate(states):
        outbox.submit(result(str(number), state=state))
    assert outbox.waiting() <= LIMIT
    core.away.clear()
    poll(lambda: outbox.waiting() == 0, 20.0, "all were taken")
    outbox.close()
    assert [r.state for r in core.taken].count(State.CRITICAL) == 30
    assert core.taken[-1].text == str(3 * LIMIT - 1)
    numbers = [int(r.text) for r in core.taken]
    assert numbers == sorted(numbers)


def test_a_fault_of_our_own_is_not_the_end() -> None:
    """Whatever breaks in a transport: results are kept, the sniffer knows that the core hears nothing, it goes on."""
    broken, sent = threading.Event(), []
    broken.set()

    class Breaking:
        def send(self, results: Sequence[PassiveResult]) -> None:
            if broken.is_set():
                raise LookupError("a fault of our own")
            sent.extend(results)

    outbox = Outbox(Breaking())
    outbox.submit(result())
    poll(lambda: not outbox.reachable, 5.0, "it is not taken")
    broken.clear()
    poll(lambda: outbox.reachable and not outbox.waiting(), 5.0, "it is taken")
    assert sent == [result()]
    outbox.close()

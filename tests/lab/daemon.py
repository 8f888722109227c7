"""The common part of the lab's daemons: start, wait, stop, kill; and the queries that both cores share."""

from __future__ import annotations

import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from tests.lab.netns import House, end, poll, spawn


class Daemon(ABC):
    """A context manager: starts on entry; stops on exit and after a failed start."""

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it as a service manager would; does nothing if it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Program(Daemon):
    """A daemon that is one program in the foreground. ``stop`` and ``start`` may alternate."""

    directory: Path
    out: str  # the file in ``directory`` that has what it printed
    limit = 15.0  # seconds until it must serve
    patience = 10.0  # seconds to end in order
    every = 0.02  # seconds between two checks that it serves
    _process: subprocess.Popen[Any] | None = None

    @abstractmethod
    def argv(self) -> Sequence[str]:
        """The command that starts it."""

    @abstractmethod
    def serves(self) -> object:
        """True as soon as it serves."""

    def said(self) -> str:
        """The end of what it printed, for a failure's message."""
        path = self.directory / self.out
        return path.read_text("utf-8", "replace")[-4000:] if path.exists() else ""

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Start and wait until it serves."""
        self._process = self._spawn()
        name = Path(self.out).stem

        def there() -> object:
            status = self._running().poll()
            assert status is None, f"{name} ended at its start, exit {status}:\n{self.said()}"
            return self.serves()

        poll(there, self.limit, f"{name} serves", every=self.every)

    def ended(self) -> bool:
        """Whether it has ended without ``stop`` or ``kill``."""
        return self._running().poll() is not None

    def stop(self) -> None:
        """End it as a service manager would: SIGTERM."""
        if self._process is not None:
            end(self._process, self.patience)
            self._process = None

    def kill(self) -> None:
        """End it as an out-of-memory killer would."""
        self._running().kill()
        self._running().wait()
        self._process = None

    def _spawn(self) -> subprocess.Popen[Any]:
        return spawn(self.argv(), self.directory / self.out)

    def _running(self) -> subprocess.Popen[Any]:
        assert self._process is not None, f"{Path(self.out).stem} is not running"
        return self._process


class Housed(Program):
    """A program in one of a house's namespaces, which ends it at the latest."""

    def __init__(
        self, house: House, who: str, argv: Sequence[str], log: Path, serves: Callable[[], object], **popen: Any
    ) -> None:
        self.house, self.who, self.directory, self.out = house, who, log.parent, log.name
        self._argv, self._serves, self._popen = argv, serves, popen

    def argv(self) -> Sequence[str]:
        return self._argv

    def serves(self) -> object:
        return self._serves()

    def _spawn(self) -> subprocess.Popen[Any]:
        return self.house.start(self.who, *self.argv(), log=self.directory / self.out, **self._popen)


class Core(Program):
    """Nagios or Icinga, with the same queries, so that a test may use either."""

    log: Path  # its own
    every = 0.1

    @abstractmethod
    def services(self) -> dict[str, dict[str, str]]:
        """Service name -> its state in the words of Nagios's status.dat."""

    def wait(self, service: str, state: int, deadline: float = 15.0, text: str = "") -> dict[str, str]:
        """That service's status once it is in ``state`` (and its output has ``text``)."""

        def there() -> dict[str, str] | None:
            fields = self.services().get(service)
            good = fields and fields["has_been_checked"] == "1" and fields["current_state"] == str(state)
            return fields if good and fields and text in fields["plugin_output"] else None

        try:
            return poll(there, deadline, f"{service!r} in state {state} {text!r}", every=0.1)
        except AssertionError as error:
            now = {name: (f["current_state"], f["plugin_output"]) for name, f in self.services().items()}
            raise AssertionError(f"{error}\nnow: {now}\n{self.tail()}") from None

    def lines(self, pattern: str) -> list[str]:
        """Lines of its log that match, oldest first."""
        text = self.log.read_text("utf-8", "replace") if self.log.exists() else ""
        return [line for line in text.splitlines() if re.search(pattern, line)]

    def said(self) -> str:
        return self.tail()

    def tail(self, count: int = 30) -> str:
        """The last lines of what it said, for a failure's message."""
        text = ""
        for path in (self.directory / self.out, self.log):
            if path.exists():
                text += "\n".join(path.read_text("utf-8", "replace").splitlines()[-count:]) + "\n"
        return text

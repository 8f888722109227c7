"""What the lab's daemons have in common: a context manager around ``start`` and ``stop``; and a core's looks."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self

from tests.lab.netns import poll


class Daemon(ABC):
    """Started on the way in, stopped on the way out, and where the start fails."""

    @abstractmethod
    def start(self) -> None:
        """Start and wait until it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End it as a service manager would; nothing where it does not run."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class Core(Daemon):
    """Nagios or Icinga, so that a test may have either: the same ways to look."""

    directory: Path
    log: Path  # its own
    out: str  # the file in ``directory`` that has what it printed

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

    def tail(self, count: int = 30) -> str:
        """The last lines of what it said, for a failure's message."""
        text = ""
        for path in (self.directory / self.out, self.log):
            if path.exists():
                text += "\n".join(path.read_text("utf-8", "replace").splitlines()[-count:]) + "\n"
        return text

"""Files that are unsafe to copy from one server to another: a listing of the source by rsync, and what it shows.

A setuid or setgid program of root gives its rights to users of the other server; a device, FIFO or socket belongs to
one machine; a symbolic link that leaves the tree names something that the copy does not contain.
"""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from check_failover.sync.rsync import TransferReport

FORMAT = "%i %B %U %G %n%L\t%n"  # rsyncd.conf(5), log format; the name is repeated to find where a link's target begins
SHOWN = 5
_KINDS = {"D": "device", "S": "FIFO or socket"}


@dataclass(slots=True)
class Survey(TransferReport):
    """Size of the source, and its unsafe files. ``roots``: absolute links to below these do not leave the tree."""

    roots: tuple[str, ...] = ()
    unsafe: list[str] = field(default_factory=list)

    def line(self, text: str) -> None:
        """Parse one line: an item in ``FORMAT``, or a statistic."""
        parts = text.split(" ", 4)
        if len(parts) == 5 and len(parts[0]) == 11 and "\t" in parts[4]:
            if why := self._why(parts[0][1], parts[1], parts[2], parts[3], parts[4]):
                self.unsafe.append(why)
        else:
            TransferReport.line(self, text)

    def _why(self, kind: str, mode: str, user: str, group: str, names: str) -> str | None:
        if kind == "L":
            outside = [link for link in _links(names) if self._leaves(*link)]
            return f"{outside[0][0]} -> {outside[0][1]}" if outside else None
        name = names.split("\t")[0]
        if kind in _KINDS:
            return f"{name} ({_KINDS[kind]})"
        if kind != "f":
            return None
        if mode[2] == "s" and user == "0":
            return f"{name} (setuid root)"
        return f"{name} (setgid program)" if mode[5] == "s" and "0" in (user, group) else None

    def _leaves(self, name: str, target: str) -> bool:
        if target.startswith("/"):
            path = posixpath.normpath(target)
            return not any(path == root or path.startswith(f"{root}/") for root in self.roots)
        return posixpath.normpath(posixpath.join(posixpath.dirname(name), target)).split("/")[0] == ".."

    def told(self) -> str:
        """The first unsafe files and the number of all."""
        more = f" and {len(self.unsafe) - SHOWN} more" if len(self.unsafe) > SHOWN else ""
        return f"{len(self.unsafe)} unsafe to copy: {', '.join(self.unsafe[:SHOWN])}{more}"


def _links(names: str) -> list[tuple[str, str]]:
    """Each way to read ``NAME -> TARGET<tab>NAME``; a name may contain an arrow or a tab itself."""
    found = []
    at = names.find(" -> ")
    while at >= 0:
        name = names[:at]
        if names.endswith(f"\t{name}"):
            found.append((name, names[at + 4 : -len(name) - 1]))
        at = names.find(" -> ", at + 1)
    return found

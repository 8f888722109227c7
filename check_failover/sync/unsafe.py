"""A listing of a server's files by rsync, and what it shows: size, digest, and files that are unsafe to copy.

A setuid or setgid program of root gives its rights to users of the other server; a device, FIFO or socket belongs to
one machine; a symbolic link that leaves the tree names something that the copy does not contain.
"""

import posixpath
from dataclasses import dataclass, field
from hashlib import sha256

from check_failover.sync.rsync import TransferReport

# rsyncd.conf(5), log format; the name is repeated to find where a link's target begins
FORMAT = "%i %B %U %G %l %M %n%L\t%n\t%C"
SHOWN = 5
_KINDS = {"D": "device", "S": "FIFO or socket"}


@dataclass(slots=True)
class Survey(TransferReport):
    """What a listing shows. ``roots``: absolute links to below these do not leave the tree.

    ``contents``: the digest is of what the files contain, which rsync read; otherwise of their sizes and times.
    ``named``: keep what each name stands for in ``items``.
    """

    roots: tuple[str, ...] = ()
    contents: bool = False
    named: bool = False
    unsafe: list[str] = field(default_factory=list)
    items: dict[str, str] = field(default_factory=dict)
    _sum: int = 0

    @property
    def digest(self) -> str:
        """Of names, kinds, modes, links' targets, and contents, in any order; empty if there are no files."""
        return f"{self._sum:064x}" if self._sum else ""

    def line(self, text: str) -> None:
        """Parse one line: an item in ``FORMAT``, or a statistic."""
        parts = text.split(" ", 6)
        if len(parts) == 7 and len(parts[0]) == 11 and parts[6].count("\t") > 1:
            kind, (names, content) = parts[0][1], parts[6].rsplit("\t", 1)
            if why := self._why(kind, parts[1], parts[2], parts[3], names):
                self.unsafe.append(why)
            self._count(kind, parts[1], names, content if self.contents else f"{parts[4]} {parts[5]}")
        else:
            TransferReport.line(self, text)

    def _count(self, kind: str, mode: str, names: str, content: str) -> None:
        name = names if kind == "L" else names.rpartition("\t")[2]
        if name == "./":
            return  # the directory itself is each server's own
        item = f"{kind} {'' if kind == 'L' else mode} {content if kind == 'f' else ''}"
        self._sum = (self._sum + int.from_bytes(sha256(f"{item} {name}".encode()).digest())) % (1 << 256)
        if self.named:
            self.items[name.partition("\t")[0]] = item

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

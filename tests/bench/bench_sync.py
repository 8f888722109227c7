"""What failover-sync costs: 10,000 files and a 200 MB LDIF between two servers, over real ssh and rsync on loopback.

    python -m tests.bench.bench_sync [--files 10000] [--ldif 200]

The first run copies all. Later ones must transfer only what changed: the last column is what went over the wire, all
comparisons and both legs over the relay included, as a share of the data.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.lab.sshd import Servers
from tests.lab.syncing import Syncing, ok

ENTRY = (
    "dn: uid=user{n:07d},ou=people,dc=example,dc=org\nobjectClass: inetOrgPerson\nuid: user{n:07d}\ncn: User {n}\n"
    "sn: {word}\nmail: user{n}@example.org\ndescription: {text}\n"
    "entryCSN: 20260101000000.{n:06d}Z#000000#001#000000\n\n"
)
MB = 1_000_000


def make_files(directory: Path, count: int) -> None:
    """Zones, pages and the like: 0.5 to 8 KB each, 100 to a directory."""
    chance = random.Random(1)
    for number in range(count):
        path = directory / "tree" / f"{number // 100:03d}" / f"{number}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randint(512, 8192)))


def make_ldif(path: Path, size: int) -> None:
    """Entries until the file has ``size`` bytes."""
    chance, number, written = random.Random(2), 0, 0
    with path.open("w") as file:
        while written < size:
            text = chance.randbytes(60).hex()
            written += file.write(ENTRY.format(n=number, word=text[:12], text=text))
            number += 1


def change_files(directory: Path) -> None:
    """One file in a hundred gets another content."""
    for path in sorted((directory / "tree").rglob("*.html"))[::100]:
        path.write_bytes(path.read_bytes() + b"<!-- changed -->")


def change_ldif(path: Path) -> None:
    """One entry in a thousand changes, 200 are new: written anew as slapcat does."""
    new = path.with_suffix(".new")
    with path.open() as old, new.open("w") as file:
        for number, line in enumerate(old):
            file.write(f"{line.rstrip()}changed\n" if line.startswith("description: ") and number % 9000 < 9 else line)
        for number in range(200):
            file.write(ENTRY.format(n=9_000_000 + number, word="new", text="new"))
    new.rename(path)


def run(syncing: Syncing, what: str, change: Callable[[], None]) -> float:
    """One run as a line of the table; returns the share of the data that travelled."""
    change()
    began = time.monotonic()
    ok(syncing.sync("--full" if what == "first run" else "-v", timeout=900))
    took = time.monotonic() - began
    state = syncing.state()
    assert state.size is not None
    share = state.sent / state.size.bytes
    row = (what, state.differed_files, state.size.bytes / MB, state.sent / MB, 100 * share, took)
    print("{:<34} {:>8} {:>10.1f} {:>10.2f} {:>8.2f} {:>8.1f}".format(*row), flush=True)
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--ldif", type=int, default=200, help="size of the LDIF in MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench_sync") as name, Servers(made(Path(name) / "servers")) as servers:
        syncing = Syncing(made(Path(name) / "home"), servers)
        try:
            data = made(syncing.primary)
            make_files(data, arguments.files)
            make_ldif(data / "data.ldif", arguments.ldif * MB)
            print(f"{arguments.files} files and an LDIF of {arguments.ldif} MB; MB = 1,000,000 bytes")
            print(f"{'':<34} {'differed':>8} {'data, MB':>10} {'wire, MB':>10} {'wire, %':>8} {'time, s':>8}")
            run(syncing, "first run", lambda: None)
            shares = [
                run(syncing, "nothing changed", lambda: None),
                run(syncing, "1 file in 100 changed", lambda: change_files(data)),
                run(syncing, "1 LDIF entry in 1000 changed", lambda: change_ldif(data / "data.ldif")),
                run(syncing, "LDIF written anew, same contents", (data / "data.ldif").touch),
            ]
        finally:
            syncing.close()
    if max(shares) > 0.1:
        raise SystemExit(f"a later run sent {100 * max(shares):.0f} % of the data: more than what changed")


def made(directory: Path) -> Path:
    """The directory, made."""
    directory.mkdir(parents=True)
    return directory


if __name__ == "__main__":
    main()

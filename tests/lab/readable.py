"""Runs the lab in a copy that every user may read.

    .venv/bin/python -m tests.lab.readable -m pytest tests/component     # the arguments are Python's

Nagios, sshd and others run our programs as users of their own, and those cannot look into /root or a folder of
``mktemp -d``. So the tree and its virtual environment are copied to a directory in /var/tmp, the command runs there,
and the directory is removed when the command has ended. (Not in /run: systems mount it with ``noexec``.)
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PREFIX = "check_failover-lab-"
LEFT_OUT = (".git", ".venv", "build", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")
# How pip's scripts name it, by its full path: in the first line, or by a shell where that is too long or has spaces.
INTERPRETER = re.compile(rb"""\A(#!(?:/bin/sh\n'''exec' "?)?)/[^\n"]*/bin/(python[0-9.]*)""")


@contextmanager
def copied(tree: Path = ROOT, environment: Path = Path(sys.prefix), where: str = "/var/tmp") -> Iterator[Path]:
    """A copy of ``tree`` with the virtual environment in ``.venv`` that everybody may read; removed on the way out."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=where) as name:
        copy = Path(name).resolve()
        shutil.copytree(tree, copy, symlinks=True, ignore=_left_out(tree, environment), dirs_exist_ok=True)
        shutil.copytree(environment, copy / ".venv", symlinks=True, ignore=shutil.ignore_patterns("mypy", "ruff"))
        for script in (copy / ".venv/bin").iterdir():
            if script.is_file() and not script.is_symlink():
                content = script.read_bytes()
                script.write_bytes(INTERPRETER.sub(rb"\g<1>%b/.venv/bin/\2" % os.fsencode(copy), content, count=1))
        subprocess.run(["/bin/chmod", "-R", "u+rwX,go+rX,go-w", str(copy)], check=True)
        yield copy


def _left_out(tree: Path, environment: Path) -> Callable[[str, list[str]], set[str]]:
    def ignore(directory: str, names: list[str]) -> set[str]:
        top = Path(directory) == tree
        return {name for name in names if (top and name in LEFT_OUT) or Path(directory, name) == environment}

    return ignore


def run(copy: Path, argv: list[str]) -> int:
    """Python with ``argv`` in the copy; gives its exit code. Passes SIGTERM and SIGHUP on; Ctrl-C reaches both."""
    os.umask(0o022)  # what it makes is read by other users, too
    process = subprocess.Popen([copy / ".venv/bin/python", *argv], cwd=copy)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    signal.signal(signal.SIGINT, lambda *_: None)
    code = process.wait()
    return code if code >= 0 else 128 - code


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # while it copies: what is there is removed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with copied() as copy:
        return run(copy, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())

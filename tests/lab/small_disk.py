"""A file system of its own, small enough to be filled: for a directory of state."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path


class SmallDisk:
    """A tmpfs at ``path``, of ``size`` as mount(8) takes it; gone with ``close``."""

    def __init__(self, path: Path, size: str = "1m") -> None:
        self.path = path
        self._mount("-t", "tmpfs", "-o", f"size={size}", "cfo-state")

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.path / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 512)

    def read_only(self) -> None:
        self._mount("-o", "remount,ro")

    def well(self) -> None:
        self._mount("-o", "remount,rw")
        (self.path / "filler").unlink(missing_ok=True)

    def _mount(self, *argv: str) -> None:
        subprocess.run(["/usr/bin/mount", *argv, str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["/usr/bin/umount", "--lazy", str(self.path)], check=True)

"""The file of NAT rules that the system loads at boot: our marked block in it, all other lines as they are.

Written beside it and renamed, so that a boot finds the old file or the new one, whole, whenever the power goes.
"""

import contextlib
import os
from pathlib import Path

from check_failover.redirector import RedirectError
from check_failover.redirector.state import sync

BEGIN = b"# BEGIN check_failover: written by failover-redirector at each flip; put your own rules outside\n"
END = b"# END check_failover\n"
_BEGIN_MARK, _END_MARK = b"# BEGIN check_failover", b"# END check_failover"


class BootFile:
    """One rules file. Its methods raise RedirectError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, rules: str) -> bool:
        """Make ``rules`` our block, at its old place or at the end. False: it was that already."""
        content = self._read()
        before, after = self._split(content)
        if before and not before[-1].endswith(b"\n"):
            before[-1] += b"\n"
        new = b"".join([*before, BEGIN, rules.encode("ascii"), END, *after])
        if new == content:
            return False
        try:
            self._replace(new)
        except OSError as error:
            raise RedirectError(
                f"{self.path}: cannot write: {error.strerror}: after a reboot the redirect would be the old one until "
                "failover-redirector runs; its user must be able to write in that directory"
            ) from None
        return True

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RedirectError(f"{self.path}: cannot read: {error.strerror}: failover-redirector needs it") from None

    def _split(self, content: bytes | None) -> tuple[list[bytes], list[bytes]]:
        """The lines before and behind our block."""
        lines = (content or b"").splitlines(keepends=True)
        begins = [i for i, line in enumerate(lines) if line.startswith(_BEGIN_MARK)]
        ends = [i for i, line in enumerate(lines) if line.startswith(_END_MARK)]
        if not begins and not ends:
            return lines, []
        if len(begins) != 1 or len(ends) != 1 or begins[0] > ends[0]:
            raise RedirectError(
                f"{self.path}: the marks of our block are damaged ({len(begins)} BEGIN, {len(ends)} END): remove these "
                "lines and what was ours between them"
            )
        return lines[: begins[0]], lines[ends[0] + 1 :]

    def _replace(self, content: bytes) -> None:
        path = Path(os.path.realpath(self.path))
        beside = path.with_name(f".{path.name}.check_failover")
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        try:
            with os.fdopen(handle, "wb") as file:
                with contextlib.suppress(OSError):  # a new file; or not root: then the group's right is enough
                    old = path.stat()
                    os.fchmod(file.fileno(), old.st_mode & 0o7777)
                    os.fchown(file.fileno(), old.st_uid, old.st_gid)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync(path.parent)

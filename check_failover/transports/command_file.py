"""Results for Nagios through its external command file, a FIFO.

The rules for a FIFO: open it with ``O_WRONLY | O_NONBLOCK`` and never create it (a regular file in its place would
prevent Nagios from making the FIFO); one ``write`` per command of at most PIPE_BUF bytes (atomic, pipe(7)); open it
again for each call, because the core may have restarted. ``pynag.Control.Command`` breaks all of these.

Source: Nagios Core documentation, "External Commands", PROCESS_SERVICE_CHECK_RESULT; fifo(7), pipe(7).
"""

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from check_failover.model import PassiveResult, printable
from check_failover.transports import TransportError, name

PIPE_BUF = 4096  # bytes that one write delivers atomically
_MEANING = {
    errno.ENXIO: "no core reads it: is Nagios running?",
    errno.ENOENT: "not there: is Nagios running, with check_external_commands=1?",
    errno.EAGAIN: "full: Nagios does not keep up",
    errno.EPIPE: "the core went away in the middle",
    errno.EACCES: "no permission: is this user in the group that owns its directory?",
}


class CommandFile:
    """Options: command_file."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._path = options["command_file"]

    def send(self, results: Sequence[PassiveResult]) -> None:
        """One write for each result, in order. Raises TransportError at the first that fails."""
        descriptor = self._open()
        try:
            for result in results:
                os.write(descriptor, command(result))
        except OSError as error:
            raise TransportError(self._why(error)) from None
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise TransportError(self._why(error)) from None
        if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise TransportError(f"{self._path}: not a FIFO: remove it and restart Nagios, which makes its own")
        return descriptor

    def _why(self, error: OSError) -> str:
        return f"{self._path}: {_MEANING.get(error.errno or 0, error.strerror or 'failed')}"


def command(result: PassiveResult) -> bytes:
    """The command line for a result, at most PIPE_BUF bytes, ending in a newline.

    Long output is cut; the first line and the perfdata stay, because they are the result.
    """
    head = f"[{int(result.at)}] PROCESS_SERVICE_CHECK_RESULT;{name(result.host)};{name(result.service)};"
    head += f"{int(result.state)};"
    perfdata = f"|{_clean(result.perfdata)}" if result.perfdata else ""
    fixed = (head + _clean(result.text) + perfdata).encode()
    if len(fixed) >= PIPE_BUF:
        return _cut(fixed, PIPE_BUF - 1) + b"\n"
    details = f"\\n{_clean(result.details)}".encode() if result.details else b""
    return fixed + _cut(details, PIPE_BUF - 1 - len(fixed)) + b"\n"


def _clean(text: str) -> str:
    """Escape newline and backslash for Nagios; replace other control characters, which would damage the command."""
    return printable(text.replace("\\", "\\\\").replace("\n", "\\n"))


def _cut(data: bytes, size: int) -> bytes:
    """At most ``size`` bytes; no character and no escape is cut in the middle."""
    cut = data[:size].decode(errors="ignore") if len(data) > size else data.decode()
    trailing = len(cut) - len(cut.rstrip("\\"))
    return (cut[:-1] if trailing % 2 and len(data) > size else cut).encode()

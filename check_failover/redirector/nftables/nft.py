"""Loads rules: runs a text of nft commands as one transaction.

libnftables is loaded through ctypes, because ``nft -f -`` takes a fork and an exec; the program is the fallback where
the library is not installed. The PyPI and Debian bindings are the same ctypes calls, but neither is there for every
interpreter.

Source: libnftables(3), nft(8).
"""

import ctypes
import subprocess
import threading

from check_failover.redirector import RedirectError

NFT = "/usr/sbin/nft"
LIBRARY = "libnftables.so.1"
TIMEOUT = 5.0  # seconds for the external program


class Nft:
    """One context, one user at a time (libnftables is not thread safe)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._library = _load()
        self._context = self._library.nft_ctx_new(0) if self._library is not None else None
        if self._library is not None and self._context:
            self._library.nft_ctx_buffer_output(self._context)
            self._library.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> None:
        """All commands or none. Raises RedirectError with nft's own first line."""
        with self._lock:
            code, errors = self._call(commands)
        if code:
            raise RedirectError(f"nft: {_first_line(errors)}")

    def _call(self, commands: str) -> tuple[int, str]:
        library, context = self._library, self._context
        if library is None or not context:
            return _external(commands)
        code = int(library.nft_run_cmd_from_buffer(context, commands.encode()))
        library.nft_ctx_get_output_buffer(context)  # empties it
        errors = library.nft_ctx_get_error_buffer(context) or b""
        return code, errors.decode(errors="replace")


def _load() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _external(commands: str) -> tuple[int, str]:
    try:
        done = subprocess.run(
            [NFT, "-f", "-"],
            input=commands,
            text=True,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env={"LC_ALL": "C"},
        )
    except FileNotFoundError:
        return 1, f"neither {LIBRARY} nor {NFT} is there: install nftables"
    except (OSError, subprocess.SubprocessError) as error:
        return 1, f"{NFT}: {error}"
    return done.returncode, done.stderr


def _first_line(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return "failed without a word (is CAP_NET_ADMIN there?)"
    said = lines[0].removeprefix("internal:0:0-0: ").removeprefix("Error: ")
    return f"{said} (is CAP_NET_ADMIN there?)" if "not permitted" in said else said

"""Access to nf_tables: run a command text as one transaction, list objects as JSON.

libnftables in this process takes 0.5 to 1 ms for a flip, ``nft -f -`` 14 to 18 ms (fork, exec, cache); so the library
is loaded through ctypes and its context kept, and the program is the fallback where the library is not installed. The
PyPI and Debian bindings are the same ctypes calls, but neither is there for every interpreter.

Source: libnftables(3), libnftables-json(5), nft(8).
"""

import ctypes
import json
import subprocess
import threading
from typing import Any

from check_failover.redirector import RedirectError

NFT = "/usr/sbin/nft"
LIBRARY = "libnftables.so.1"
TIMEOUT = 5.0  # seconds for the external program
_OUTPUT_JSON = 1 << 4  # NFT_CTX_OUTPUT_JSON


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
            code, _, errors = self._call(commands, as_json=False)
        if code:
            raise RedirectError(f"nft: {_first_line(errors)}")

    def list(self, what: str) -> list[dict[str, Any]]:
        """``list map inet t m`` as the objects of libnftables-json(5), without the metainfo. Raises RedirectError."""
        with self._lock:
            code, output, errors = self._call(f"list {what}", as_json=True)
        if code:
            raise RedirectError(f"nft: {_first_line(errors)}")
        try:
            objects = json.loads(output)["nftables"]
        except (ValueError, KeyError, TypeError):
            raise RedirectError(f"nft: list {what}: not the JSON it promises") from None
        return [entry for entry in objects if "metainfo" not in entry]

    def _call(self, commands: str, *, as_json: bool) -> tuple[int, str, str]:
        library, context = self._library, self._context
        if library is None or not context:
            return _external(commands, as_json=as_json)
        library.nft_ctx_output_set_flags(context, _OUTPUT_JSON if as_json else 0)
        code = int(library.nft_run_cmd_from_buffer(context, commands.encode()))
        output = library.nft_ctx_get_output_buffer(context) or b""
        errors = library.nft_ctx_get_error_buffer(context) or b""
        return code, output.decode(errors="replace"), errors.decode(errors="replace")


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
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library


def _external(commands: str, *, as_json: bool) -> tuple[int, str, str]:
    argv = [NFT, *(["-j"] if as_json else []), "-f", "-"]
    try:
        done = subprocess.run(
            argv, input=commands, text=True, capture_output=True, timeout=TIMEOUT, check=False, env={"LC_ALL": "C"}
        )
    except FileNotFoundError:
        return 1, "", f"neither {LIBRARY} nor {NFT} is there: install nftables"
    except (OSError, subprocess.SubprocessError) as error:
        return 1, "", f"{NFT}: {error}"
    return done.returncode, done.stdout, done.stderr


def _first_line(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if not lines:
        return "failed without a word (is CAP_NET_ADMIN there?)"
    said = lines[0].removeprefix("internal:0:0-0: ").removeprefix("Error: ")
    return f"{said} (is CAP_NET_ADMIN there?)" if "not permitted" in said else said

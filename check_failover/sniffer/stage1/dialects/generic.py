"""Any protocol, encrypted ones too: bytes in want bytes out. Pure."""

from __future__ import annotations

from collections.abc import Hashable

from check_failover.sniffer.stage1.dialects import ALL, Reply

_BYTES: list[tuple[Hashable, str]] = [("bytes", "bytes")]
_ENCRYPTED: list[tuple[Hashable, str]] = [("bytes", "encrypted")]
_ANSWER = [Reply(ALL, True, False)]


class Generic:
    """See ``dialects``."""

    __slots__ = ("encrypted",)

    def __init__(self, encrypted: bool) -> None:
        self.encrypted = encrypted

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]:
        return _ENCRYPTED if self.encrypted else _BYTES

    def reply(self, data: bytes, missing: int) -> list[Reply]:
        return _ANSWER

    def resync(self, from_client: bool) -> None:
        """No messages, nothing to find again."""

"""Any protocol, encrypted ones too: bytes from the client are a request, bytes from the server its reply. Pure."""

from collections.abc import Hashable

from check_failover.sniffer.stage1.dialects.messages import ALL, Reply

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
        """Do nothing: there are no message boundaries."""

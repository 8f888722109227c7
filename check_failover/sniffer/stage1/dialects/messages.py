"""What the dialects find in the bytes, and the interface of a dialect (see ``dialects``). Pure."""

from collections.abc import Hashable
from typing import NamedTuple, Protocol


class Reply(NamedTuple):
    """``key`` names the request (or ANY, ALL); ``final``: the reply is complete; ``error``: the server has a fault,
    or (``provoked``) its client may have caused the error.

    ALL and not final: the server sends bytes that cannot be parsed, so no open request counts as evidence.
    """

    key: Hashable
    final: bool
    error: bool
    provoked: bool = False


ANY = "any"  # the oldest open request
ALL = "all"  # every open request
GIVEN_UP = "given up"  # an operation: the client no longer waits for this key (or ALL)
UNREADABLE = Reply(ALL, False, False)


class Dialect(Protocol):
    """See ``dialects``. ``encrypted``: the requests of this connection are not visible."""

    encrypted: bool

    def request(self, data: bytes, missing: int) -> list[tuple[Hashable, str]]: ...

    def reply(self, data: bytes, missing: int) -> list[Reply]: ...

    def resync(self, from_client: bool) -> None: ...

"""Our table in the kernel: its chains, rules, elements and counters; elements changed in one transaction.

The cost of each call is that of what it names, whatever else the table has. ``nft`` loads the rules themselves.

Source: linux/netfilter/nf_tables.h; a batch is one transaction (linux/netfilter/nfnetlink.h).
"""

import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable

from check_failover.redirector import Change, RedirectError
from check_failover.redirector.nftables.netlink import ACK, DUMP, Netlink, attribute, attributes, nested, opened, split

_INET = 1  # NFPROTO_INET
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_CHAIN, _GET_RULE, _NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT, _GET_OBJECT = (
    _SUBSYSTEM << 8 | message for message in (4, 7, 12, 13, 14, 19)
)
_OF_ELEMENTS = (_NEW_ELEMENT, _DELETE_ELEMENT)
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_COUNTER = 1  # NFT_OBJECT_COUNTER
_GROUP = 1 << 6  # NFNLGRP_NFTABLES, the seventh multicast group
_MISSING = "nftables: our table or one of its sets is missing"
_TABLE = 1  # the attribute of the table's name, in every message about a table or its parts

Element = tuple[str, bytes]  # name of the set, key as the kernel stores it


class Table:
    """A table of the family inet. Methods raise RedirectError, also where the table or the part is missing."""

    def __init__(self, name: str) -> None:
        self._name = name.encode() + b"\0"
        self._table = attribute(_TABLE, self._name)
        self._kernel = Netlink("nftables")

    def chains(self) -> list[str]:
        """The names of the table's chains; empty: there is no table."""
        return [_text(parts[3]) for parts in self._dump(_GET_CHAIN, b"")]

    def rules(self) -> Counter[str]:
        """Chain -> number of its rules."""
        return Counter(_text(parts[2]) for parts in self._dump(_GET_RULE, self._table))

    def elements(self, name: str) -> list[bytes]:
        """The keys of a set's or map's elements."""
        found = self._dump(_GET_ELEMENT, self._part(name))
        elements = [dict(attributes(one)) for parts in found for _, one in attributes(parts.get(3, b""))]
        return [dict(attributes(element[1]))[1] for element in elements]

    def counter(self, name: str) -> int:
        """The packets that a counter has counted."""
        which = self._part(name) + attribute(3, struct.pack("!I", _COUNTER))
        try:
            (found,) = self._kernel.ask(_GET_OBJECT, ACK, _INET, which)
            packets: int = struct.unpack("!Q", dict(attributes(dict(attributes(found))[4]))[2])[0]
        except (FileNotFoundError, ValueError, KeyError):
            raise RedirectError(f"nftables: the counter {name} is missing") from None
        return packets

    def change(
        self, add: Iterable[Element] = (), remove: Iterable[Element] = (), flush: Iterable[str] = (), seconds: float = 0
    ) -> None:
        """One transaction: flush sets, then remove and add elements; the right ones may be there, or gone, already.

        ``seconds``: until the kernel removes the added elements, 0: never.
        """
        # Adding what is there changes nothing, so an element that is added before it is removed is never missing.
        add, remove, expires = tuple(add), tuple(remove), struct.pack("!Q", int(1000 * seconds))
        timeout = attribute(4, expires) if seconds else b""
        requests = [(_DELETE_ELEMENT, self._part(name)) for name in flush]
        for element in remove:
            requests += [(_NEW_ELEMENT, self._element(*element)), (_DELETE_ELEMENT, self._element(*element))]
        requests += [(_NEW_ELEMENT, self._element(name, key, timeout)) for name, key in add]
        batch = [(kind, 0x400 if kind == _NEW_ELEMENT else 0, _INET, body) for kind, body in requests]  # NLM_F_CREATE
        batch[-1] = (batch[-1][0], batch[-1][1] | ACK, *batch[-1][2:])
        frame = _SUBSYSTEM << 8
        try:
            self._kernel.send_all([(_BATCH_BEGIN, 0, frame, b""), *batch, (_BATCH_END, 0, frame, b"")])
        except FileNotFoundError:
            raise RedirectError(_MISSING) from None

    def watch(self, changed: Callable[[Change], None]) -> None:
        """Call back, in a thread, after each change of the table, by us or another program. Raises RedirectError."""
        try:
            sock = opened(_GROUP)
        except OSError as error:
            raise RedirectError(f"nftables: cannot listen for changes: {error.strerror}") from None

        def listen() -> None:
            while True:
                try:
                    messages = split(sock.recv(1 << 18))
                    ours = (kind for _, kind, body in messages if dict(attributes(body[4:])).get(_TABLE) == self._name)
                    kinds = {Change.WIRING if kind in _OF_ELEMENTS else Change.RULES for kind in ours}
                    changed(max(kinds, default=Change.NONE))
                except OSError:  # ENOBUFS: more changes than the buffer holds
                    changed(Change.RULES)

        threading.Thread(target=listen, name="nftables", daemon=True).start()

    def _dump(self, kind: int, which: bytes) -> list[dict[int, bytes]]:
        try:
            found = [dict(attributes(one)) for one in self._kernel.ask(kind, DUMP, _INET, which)]
        except FileNotFoundError:
            raise RedirectError(_MISSING) from None
        return [parts for parts in found if parts.get(_TABLE) == self._name]

    def _part(self, name: str) -> bytes:
        """Attributes that name a set or a counter."""
        return self._table + attribute(2, name.encode() + b"\0")

    def _element(self, name: str, key: bytes, more: bytes = b"") -> bytes:
        return self._part(name) + nested(3, nested(1, nested(1, attribute(1, key)), more))


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")

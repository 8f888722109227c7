"""A private smsd (SMS Server Tools) whose modem is switched off: its log has the PDUs for the modem.

with Smsd(directory) as smsd:
    ... smsd.options goes into [sms] of a config ...
    smsd.wait_sent(1)  # [("491701", "ldap primary ...")]
"""

from __future__ import annotations

import re
from pathlib import Path

from tests.lab.daemon import Program
from tests.lab.netns import poll

SMSD = "/usr/sbin/smsd"
FOLDERS = ("outgoing", "checked", "failed", "incoming", "sent")
CONFIG = """\
devices = GSM1
logfile = {place}/smsd.log
infofile = {place}/smsd.working
pidfile = {place}/smsd.pid
outgoing = {place}/outgoing
checked = {place}/checked
failed = {place}/failed
incoming = {place}/incoming
sent = {place}/sent
delaytime = 1
delaytime_mainprocess = 1
store_sent_pdu = 3
[GSM1]
device = /dev/null
incoming = no
modem_disabled = yes
"""


class Smsd(Program):
    """See the module."""

    out = "smsd.out"
    patience = 2.0  # it would wait until the modem has played its last text

    def __init__(self, directory: Path) -> None:
        for name in FOLDERS:
            (directory / name).mkdir(parents=True)
        self.directory = directory
        self.options: dict[str, object] = {"gateway": "smstools", "outgoing": str(directory / "outgoing")}
        (directory / "smsd.conf").write_text(CONFIG.format(place=directory))

    def argv(self) -> list[str]:
        return [SMSD, "-t", "-c", str(self.directory / "smsd.conf")]

    def serves(self) -> bool:
        return (self.directory / "smsd.pid").exists()

    def sent(self) -> list[tuple[str, str]]:
        """(number, text) of all that the modem would have got, read back from the PDUs."""
        pdus = [re.search(r"^PDU: (\w+)", path.read_text("latin-1"), re.MULTILINE) for path in self._files("sent")]
        return [decode(bytes.fromhex(match[1])) for match in pdus if match]

    def wait_sent(self, count: int, deadline: float = 30.0) -> list[tuple[str, str]]:
        """The same, as soon as there are ``count``."""
        try:
            return poll(lambda: len(got := self.sent()) >= count and got, deadline, f"{count} texts sent by smsd")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{(self.directory / 'smsd.log').read_text('latin-1')[-2000:]}") from None

    def _files(self, folder: str) -> list[Path]:
        return sorted((self.directory / folder).iterdir())


def decode(pdu: bytes) -> tuple[str, str]:
    """(number, text) of an SMS-SUBMIT without header and validity (3GPP TS 23.040, 9.2.2.2)."""
    at = 1 + pdu[0] + 2  # message centre, first octet, reference
    digits = pdu[at]
    number = "".join(f"{byte & 15:X}{byte >> 4:X}" for byte in pdu[at + 2 : at + 2 + (digits + 1) // 2])[:digits]
    at += 2 + (digits + 1) // 2 + 1
    coding, validity = pdu[at], 1 if pdu[1 + pdu[0]] & 0x18 else 0
    length, data = pdu[at + 1 + validity], pdu[at + 2 + validity :]
    if coding == 8:
        return number, data[:length].decode("utf-16-be")
    bits = int.from_bytes(data, "little")
    return number, _gsm([bits >> (7 * n) & 127 for n in range(length)])


def _gsm(septets: list[int]) -> str:
    from check_failover.sms import text

    basic = text._BASIC[:27] + "\x1b" + text._BASIC[27:]
    extended = {0x3C: "[", 0x3E: "]", 0x65: "€", 0x28: "{", 0x29: "}"}
    found, escape = "", False
    for septet in septets:
        if septet == 0x1B:
            escape = True
            continue
        found += extended[septet] if escape else basic[septet]
        escape = False
    return found

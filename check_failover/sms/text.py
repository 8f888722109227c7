"""Length of short messages in the GSM 7-bit alphabet (3GPP TS 23.038, 6.2.1) or UCS-2 (6.2.3). Pure.

One message holds 140 bytes: 160 septets, or 70 UTF-16 units. A longer text is split into parts of 153 or 67 units,
because each part needs a header for reassembly (3GPP TS 23.040, 9.2.3.24.1).
"""

from check_failover.model import printable

_BASIC = (
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
_EXTENDED = "\f^{}\\[~]|€"  # each one needs an escape septet before it
_SEPTETS = dict.fromkeys(_BASIC, 1) | dict.fromkeys(_EXTENDED, 2)
_TYPOGRAPHY = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "\xa0": " "})

SINGLE = {True: 160, False: 70}  # units that fit in one message; True: septets of GSM 7-bit, False: UTF-16 units
PART = {True: 153, False: 67}


def plain(text: str) -> str:
    """The text on one line: typographic characters become ASCII, control characters and line ends become spaces."""
    return " ".join(printable(text.translate(_TYPOGRAPHY)).split())


def is_gsm(text: str) -> bool:
    """Whether the GSM 7-bit alphabet has every character of the text, so that 160 fit in a message instead of 70."""
    return all(c in _SEPTETS for c in text)


def units(text: str) -> int:
    """Length in septets of GSM 7-bit, otherwise in UTF-16 units (a character beyond U+FFFF takes two)."""
    return sum(_SEPTETS[c] for c in text) if is_gsm(text) else len(text.encode("utf-16-be")) // 2


def parts(text: str) -> int:
    """How many messages the text takes."""
    length, gsm = units(text), is_gsm(text)
    return 1 if length <= SINGLE[gsm] else -(-length // PART[gsm])


def fit(head: str, body: str, tail: str = "", limit: int = 1) -> str:
    """``head body tail`` in at most ``limit`` messages: the end of the body is cut and replaced by ``...``.

    If the head alone is too long (Nagios allows very long names), its end is cut too; the tail is never cut.
    """
    if parts(head + body + tail) <= limit:
        return head + body + tail
    if parts(f"{head}...{tail}") > limit:
        head, body = "", head + body
    low, high = 0, len(body)
    while low < high:  # the longest body that fits
        middle = (low + high + 1) // 2
        fits = parts(f"{head}{body[:middle].rstrip()}...{tail}") <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return f"{head}{body[:low].rstrip()}...{tail}"

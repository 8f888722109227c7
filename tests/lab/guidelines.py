"""A strict reader of a plugin's output, by the Monitoring Plugins Development Guidelines and our own narrower rules.

The guidelines (2.6): ``'label'=value[UOM];[warn];[crit];[min];[max]``, separated by spaces; the quotes are needed where
the label has a space, ``=`` or ``'`` (doubled inside); value, min and max consist of ``-``, digits and ``.``, or the
value is ``U``; warn and crit are ranges (2.5). Ours: base units only (s, B, %, c), a number is one number, labels that
differ in their first 19 characters (RRD's limit for a data source), a first line of at most 80 characters.
"""

from __future__ import annotations

import re

from check_failover.model import State

NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
RANGE = rf"@?(?:(?:~|{NUMBER})?:)?(?:{NUMBER})?"
ITEM = re.compile(
    rf"(?:'(?P<quoted>(?:[^'=]|'')+)'|(?P<plain>[^\s'=]+))=(?:U|{NUMBER}(?P<unit>s|B|%|c)?)"
    rf"(?:;(?P<warn>{RANGE})(?:;(?P<crit>{RANGE})(?:;(?P<min>{NUMBER})?(?:;(?P<max>{NUMBER})?)?)?)?)?(?: +|$)"
)
FIRST_LINE = 80  # characters


def perfdata(text: str) -> dict[str, str]:
    """Label to item. Raises AssertionError at the first character that does not belong."""
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = ITEM.match(text, at)
        assert match, f"no perfdata by the guidelines: {text[at:]!r}"
        label = match["plain"] or match["quoted"].replace("''", "'")
        assert label[:19] not in {known[:19] for known in found}, f"{label!r}: another one begins like this"
        found[label] = match[0].strip()
        at = match.end()
    return found


def first_line(output: str, code: int) -> str:
    """The first line of an output that keeps every rule; ``code`` is the exit code it came with."""
    assert code in set(State), f"exit code {code}"
    assert output.endswith("\n"), output
    assert "Traceback" not in output
    lines = output.splitlines()
    text, bar, perf = lines[0].partition(" | ")
    assert text.startswith(f"{State(code).name}: "), f"exit code {code}, but: {text}"
    assert len(text) <= FIRST_LINE, text
    assert all(line.isprintable() for line in lines), lines
    assert not [line for line in (text, perf, *lines[1:]) if "|" in line], output
    assert not bar or perfdata(perf), output
    return lines[0]

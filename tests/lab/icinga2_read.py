"""Reads the Icinga 2 configuration that we ship (``nagios-conf/icinga2``), with its subset of the language.

``director_basket`` needs the same objects in another form. Not for a site's own configuration: unknown syntax raises
``Icinga2Error``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_TOKEN = re.compile(
    r"""(?P<skip>[ \t]+|//[^\n]*|/\*.*?\*/)
      | (?P<function>\{\{.*?\}\})
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<number>\d+(?:\.\d+)?[smhd]?\b)
      | (?P<word>[A-Za-z_][\w.]*)
      | (?P<sign>\+=|&&|\|\||==|!=|[=+{}\[\](),<>])
      | (?P<line>\n)
    """,
    re.VERBOSE | re.DOTALL,
)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
Value: TypeAlias = "str | int | bool | Function | list[Value] | dict[str, Value]"
_WORDS = {"true": True, "false": False}


class Icinga2Error(Exception):
    """Syntax that this reader does not support: one line."""


@dataclass(frozen=True, slots=True)
class Function:
    """The source text of a value that Icinga computes."""

    body: str


@dataclass
class Object:
    """``object``, ``template`` or ``apply``, with its attributes; ``adds`` are those with ``+=``."""

    kind: str
    type: str
    name: str
    imports: list[str] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    adds: dict[str, Any] = field(default_factory=dict)
    assign: list[str] = field(default_factory=list)


def read(text: str) -> list[Object]:
    """The objects in order, their attributes by name (``vars.NAME`` unchanged). Raises Icinga2Error."""
    return list(_Reader(text).objects())


class _Reader:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise Icinga2Error(f"not understood: {text[at:].splitlines()[0]}")
            if match.lastgroup != "skip":
                self._tokens.append((str(match.lastgroup), match[0]))
            at = match.end()
        self._at = 0

    def objects(self) -> Iterator[Object]:
        while self._next_line():
            kind, made, name = self._take("word"), self._take("word"), self._string()
            found = Object(kind, made, name)
            while self._tokens[self._at][1] != "{":
                self._at += 1  # to Service
            self._take("sign")
            while self._next_line() and not self._is("}"):
                self._statement(found)
            self._take("sign")
            yield found

    def _statement(self, found: Object) -> None:
        word = self._take("word")
        if word == "import":
            found.imports.append(self._string())
        elif word == "assign":
            rest = []
            while self._tokens[self._at][0] != "line":
                rest.append(self._tokens[self._at][1])
                self._at += 1
            found.assign.append(" ".join(rest).removeprefix("where "))
        else:
            into = found.adds if self._take("sign") == "+=" else found.attributes
            into[word] = self._value()

    def _value(self) -> Value:
        kind, text = self._tokens[self._at]
        self._at += 1
        if text in ("{", "["):
            value: Value = self._dictionary() if text == "{" else self._array()
        elif kind == "function":
            value = Function(text.removeprefix("{{").removesuffix("}}").strip())
        elif kind == "string":
            value = _unquoted(text)
        elif kind == "number":
            unit = text.lstrip("0123456789.")
            value = int(float(text.removesuffix(unit)) * _SECONDS[unit])
        elif kind == "word":
            value = _WORDS.get(text, text)
        else:
            raise Icinga2Error(f"not a value: {text!r}")
        if self._is("+"):
            self._at += 1
            return f"{value} + {self._value()}"
        return value

    def _dictionary(self) -> dict[str, Value]:
        made: dict[str, Value] = {}
        while self._next_line() and not self._is("}"):
            kind, key = self._tokens[self._at]
            self._at += 1
            if self._take("sign") != "=":
                raise Icinga2Error(f"not understood after {key}")
            made[_unquoted(key) if kind == "string" else key] = self._value()
        self._take("sign")
        return made

    def _array(self) -> list[Value]:
        made: list[Value] = []
        while self._next_line() and not self._is("]"):
            made.append(self._value())
        self._take("sign")
        return made

    def _next_line(self) -> bool:
        """Skip separators; whether there is more."""
        while self._at < len(self._tokens) and self._tokens[self._at][1] in ("\n", ","):
            self._at += 1
        return self._at < len(self._tokens)

    def _is(self, sign: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at] == ("sign", sign)

    def _take(self, kind: str) -> str:
        found, text = self._tokens[self._at]
        if found != kind:
            raise Icinga2Error(f"{text!r} where a {kind} was expected")
        self._at += 1
        return text

    def _string(self) -> str:
        return _unquoted(self._take("string"))


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t", "r": "\r"}.get(match[1], match[1]), text[1:-1])

"""Reads the values of a JSON object; a value of another type than expected is a ValueError that names it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
CLOCK_SLACK = 60.0  # seconds by which a time may be ahead of our clock and still be valid


class Table:
    """An object of a record; each getter checks the type of one value and raises ValueError."""

    def __init__(self, name: str, raw: object, now: float) -> None:
        if not isinstance(raw, dict):
            raise ValueError(f"{name or 'it'} is no object")
        self._name, self._raw, self._now = name and f"{name}.", raw, now

    def number(self, key: str) -> float | None:
        value = self._raw.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{self._name}{key} is no number")
        return float(value)

    def time(self, key: str) -> float | None:
        value = self.number(key)
        if value is not None and value > self._now + CLOCK_SLACK:
            ahead = f"{value - self._now:.0f} s"
            raise ValueError(f"{self._name}{key} is {ahead} in the future: compare the controller's clock with it")
        return value

    def count(self, key: str) -> int | None:
        value = self.number(key)
        if value is not None and (value < 0 or not value.is_integer()):
            raise ValueError(f"{self._name}{key} is no count")
        return None if value is None else int(value)

    def flag(self, key: str) -> bool:
        value = self._raw.get(key, False)
        if not isinstance(value, bool):
            raise ValueError(f"{self._name}{key} is neither true nor false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._raw.get(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{self._name}{key} is no text")
        return value

    def word(self, key: str) -> str | None:
        return None if self._raw.get(key) is None else self.text(key)

    def must(self, key: str, getter: Callable[[str], T | None]) -> T:
        value = getter(key)
        if value is None:
            raise ValueError(f"{self._name}{key} is missing")
        return value

    def table(self, key: str, made: Callable[[Table], T]) -> T | None:
        raw = self._raw.get(key)
        return None if raw is None else made(Table(f"{self._name}{key}", raw, self._now))

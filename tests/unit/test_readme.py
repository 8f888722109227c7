"""README.md tells the truth: every config key, every program and every reason is in it."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from check_failover.admin.ctl import _parser
from check_failover.config_shape import schema
from check_failover.decide import Reason

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text("utf-8")


def keys(node: Any) -> Iterator[str]:
    """All property names of the schema."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "properties":
                yield from value
            yield from keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from keys(value)


@pytest.mark.parametrize("key", sorted(set(keys(schema()))))
def test_every_key_is_documented(key: str) -> None:
    """A key that README does not name in code style cannot be found by an administrator."""
    assert f"`{key}`" in README or f"[{key}]" in README or f".{key}]" in README


@pytest.mark.parametrize("reason", sorted(set(Reason) - {Reason.FLIP, Reason.ALREADY}))
def test_every_refusal_is_named(reason: Reason) -> None:
    """A refusal's name is what people look for."""
    assert f"`{reason}`" in README


def test_every_command_is_named() -> None:
    """failoverctl's commands are in README, and README names no others."""
    actions = [action for action in _parser()._actions if action.dest == "==SUPPRESS==" or hasattr(action, "choices")]
    commands = {name for action in actions if isinstance(action.choices, dict) for name in action.choices}
    assert commands
    named = set(re.findall(r"failoverctl ([a-z][a-z0-9-]+)", README))
    assert named == commands


def test_every_program_is_installed_and_named() -> None:
    """Each program of setup.cfg has a place in README."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    scripts = [
        line.split("=")[0].strip() for line in config["options.entry_points"]["console_scripts"].split("\n") if line
    ]
    scripts += [Path(line).name for line in config["options"]["scripts"].split("\n") if line]
    missing = [name for name in scripts if name not in README]
    assert missing == []


def test_pictures_exist() -> None:
    """What README shows is there."""
    for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README):
        assert (ROOT / path).is_file(), path

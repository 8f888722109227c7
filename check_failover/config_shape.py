"""Checks the config's tables, keys and values by config.schema.json; an error is one line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from jsonschema.exceptions import ValidationError

_LONG = 60  # characters; an error message does not show a longer value


def text() -> bytes:
    """The JSON schema beside this module (draft 2020-12). "form" is our own key: a pattern in words."""
    return Path(__file__).with_name("config.schema.json").read_bytes()


def schema() -> dict[str, Any]:
    """``text``, parsed."""
    loaded: dict[str, Any] = json.loads(text())
    return loaded


def problem(raw: dict[str, Any]) -> str | None:
    """The first error of a config: path to the key, what is wrong, what the key means. None: no error."""
    from jsonschema import Draft202012Validator  # 80 ms
    from jsonschema.exceptions import best_match

    rules = schema()
    errors = list(Draft202012Validator(rules).iter_errors(raw))
    # If a check's own rules fail, its keys count as unevaluated too: the real errors come first.
    error = best_match([e for e in errors if e.validator != "unevaluatedProperties"] or errors)
    if error is None:
        return None
    meaning = _meaning(rules, error.absolute_schema_path)
    return f"{error.json_path}: {_explain(rules, error)}" + (f" ({meaning})" if meaning else "")


def _explain(rules: dict[str, Any], error: ValidationError) -> str:
    """jsonschema's message, or a clearer one for unknown keys, patterns and long values."""
    unknown = re.match(
        r"(?:Additional|Unevaluated) properties are not allowed \((.*) (?:was|were) unexpected\)", error.message
    )
    here, found = cast("dict[str, Any]", error.schema), cast("Any", error.instance)
    if unknown is not None:
        known = _keys(rules, here, found)
        import difflib

        near = difflib.get_close_matches(unknown[1].split(", ")[0].strip("'"), sorted(known), 1)
        return f"unknown key {unknown[1]}" + (f", is it {near[0]!r}?" if near else "")
    if error.validator == "pattern" and "form" in here:
        return f"{found!r} does not match: want {here['form']}"
    shown = repr(found)
    return error.message.replace(shown, "a table") if len(shown) > _LONG else error.message


def _keys(rules: dict[str, Any], node: dict[str, Any], table: Mapping[str, Any]) -> set[str]:
    """The keys that a table may have: its own and those for its ``type``, ``gateway`` or ``transport``."""
    if "$ref" in node:
        node = node | rules["$defs"][node["$ref"].removeprefix("#/$defs/")]
    found = set(node.get("properties", {}))
    for part in node.get("allOf", []):
        wanted = part.get("if", {}).get("properties", {})
        if all(table.get(key) == rule.get("const") for key, rule in wanted.items()):
            found |= _keys(rules, part.get("then", part), table)
    return found


def _meaning(rules: dict[str, Any], steps: Iterable[str | int]) -> str | None:
    """The description nearest to the failing rule on its path through the schema."""
    node: Any = rules
    meaning: str | None = None
    for step in steps:
        if "$ref" in node and step not in node:  # jsonschema leaves "$ref" out of its path
            node = rules["$defs"][node["$ref"].removeprefix("#/$defs/")]
            meaning = node.get("description", meaning)
        node = node[step]
        if isinstance(node, dict) and isinstance(node.get("description"), str):
            meaning = node["description"]
    return meaning

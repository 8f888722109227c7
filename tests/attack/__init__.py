"""Attacks by those who may reach a door: each one has an end, and what must hold afterwards is asserted.

``make attack [ROUNDS=N]`` runs them for longer; a short run of each is part of ``make test``.
"""

from __future__ import annotations

import os

ROUNDS = int(os.environ.get("ROUNDS", "0"))


def rounds(quick: int) -> int:
    """How many attempts: ``ROUNDS``, or ``quick`` within the suite."""
    return ROUNDS or quick

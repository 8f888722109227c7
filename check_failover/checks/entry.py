"""The entry points of the checks: ``check_failover.checks.entry:ldap`` imports ``ldap`` and runs its ``check``.

A Python package that is missing or broken is UNKNOWN (3) like every fault of this machine, not a traceback and 1.
"""

import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from check_failover.checks.plugin import Outcome, present, run
from check_failover.model import State


def main(name: str) -> NoReturn:
    """Run a check of this package."""
    try:
        check = importlib.import_module(f"check_failover.checks.{name}").check
    except Exception as error:
        present(Outcome(State.UNKNOWN, f"cannot start: {type(error).__name__}: {error}"))
    run(check)


def __getattr__(name: str) -> Callable[[], NoReturn]:
    if name.startswith("_"):
        raise AttributeError(name)
    return partial(main, name)


if __name__ == "__main__":
    main(sys.argv.pop(1))

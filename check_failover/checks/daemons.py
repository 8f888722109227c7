"""The paths of the daemons' sockets, for the checks that query them."""

from __future__ import annotations

from pathlib import Path

from check_failover.checks.plugin import CheckError
from check_failover.places import HERE


def socket_of(config: str | None, name: str) -> Path:
    """The socket's path: in the config's run_dir, or in the default run_dir without a config. Raises CheckError."""
    if config is None:
        return Path(HERE["run_dir"], name)
    from check_failover.config import ConfigError, load

    try:
        return load(config).controller.run_dir / name
    except ConfigError as error:
        raise CheckError(str(error)) from None

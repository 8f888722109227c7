"""Where the daemons' sockets are, for checks that ask them."""

from __future__ import annotations

from pathlib import Path

from check_failover.checks.plugin import CheckError
from check_failover.places import HERE


def socket_of(config: str | None, name: str) -> Path:
    """The socket of that name: below the config's run_dir, or the usual place without a config."""
    if config is None:
        return Path(HERE["run_dir"], name)
    from check_failover.config import ConfigError, load

    try:
        return load(config).controller.run_dir / name
    except ConfigError as error:
        raise CheckError(str(error)) from None

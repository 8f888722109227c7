"""Each platform's default paths, for which neither config nor command line gives another.

Imports little, because the event handler starts anew for each event.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeVar

    Row = TypeVar("Row")

LINUX = {
    "config": "/etc/check_failover/config.toml",
    "run_dir": "/run/check_failover",
    "state_dir": "/var/lib/check_failover",
    "command_file": "/var/lib/nagios4/rw/nagios.cmd",  # Debian's package
    "nagios_cfg": "/etc/nagios4/nagios.cfg",
    "plugins": "/usr/lib/nagios/plugins",
}
BSD = {
    "run_dir": "/var/run/check_failover",
    "state_dir": "/var/db/check_failover",
    "command_file": "/var/spool/nagios/rw/nagios.cmd",  # FreeBSD's port
}
# prefix of sys.platform -> what -> its path
PLACES = {
    "linux": LINUX,
    "freebsd": BSD
    | {
        "config": "/usr/local/etc/check_failover/config.toml",
        "nagios_cfg": "/usr/local/etc/nagios/nagios.cfg",
        "plugins": "/usr/local/libexec/nagios",
        "ipnat": "/sbin/ipnat",
        "ipnat_rules": "/etc/ipnat.rules",  # loaded at boot
    },
    "netbsd": BSD
    | {
        "config": "/usr/pkg/etc/check_failover/config.toml",
        "nagios_cfg": "/usr/pkg/etc/nagios/nagios.cfg",
        "plugins": "/usr/pkg/libexec/nagios",
        "ipnat": "/usr/sbin/ipnat",
        "ipnat_rules": "/etc/ipnat.conf",
    },
    "sunos": LINUX
    | {"run_dir": "/var/run/check_failover", "ipnat": "/usr/sbin/ipnat", "ipnat_rules": "/etc/ipf/ipnat.conf"},
}


def row_of(rows: Mapping[str, Row], platform: str, otherwise: str) -> Row:
    """The row whose key begins ``platform`` (freebsd14, netbsd10), or the row ``otherwise`` if there is none."""
    return next((row for name, row in rows.items() if platform.startswith(name)), rows[otherwise])


def places(platform: str = sys.platform) -> dict[str, str]:
    """The platform's default paths; Linux's for an unknown platform."""
    return row_of(PLACES, platform, "linux")


HERE = places()
REDIRECTOR_SOCKET = f"{HERE['run_dir']}/redirector.sock"

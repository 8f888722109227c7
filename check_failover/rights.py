"""Who may use which verb of a daemon's socket. SO_PEERCRED gives the user; root may use all verbs."""

import contextlib
import grp
import pwd
from collections.abc import Mapping
from typing import TypeAlias

from check_failover.config import Controller
from check_failover.peer import Peer
from check_failover.syncstate import directory

Table: TypeAlias = Mapping[str, frozenset[str]]  # verb -> the roles that may use it

_EVERYONE, _CORE, _SNIFFER, _PAIR, _OPERATORS = "everyone", "core", "sniffer", "pair", "operators"
_REDIRECTOR, _SYNC = "redirector", "sync"

OF_REDIRECTOR: Table = {
    "status": frozenset({_EVERYONE}),
    "history": frozenset({_EVERYONE}),
    "subscribe": frozenset({_EVERYONE}),
    "fail-over": frozenset({_CORE, _SNIFFER, _OPERATORS}),
    "recovered": frozenset({_CORE, _SNIFFER}),
    "facts": frozenset({_SNIFFER}),
    "forget": frozenset({_SNIFFER}),
    "elsewhere": frozenset({_SNIFFER}),
    "activity": frozenset({_SNIFFER}),
    "drain": frozenset({_OPERATORS}),
    "fail-back": frozenset({_CORE, _OPERATORS}),
    "downtime": frozenset({_CORE, _OPERATORS}),
    "drill": frozenset({_OPERATORS}),
    "drilled": frozenset({_CORE}),
    "drill-end": frozenset({_OPERATORS}),
    "hold": frozenset({_OPERATORS}),
    "release": frozenset({_OPERATORS}),
    "state": frozenset({_PAIR}),
    "follow": frozenset({_PAIR}),
    "decided": frozenset({_SYNC}),
}
OF_SNIFFER: Table = {
    "status": frozenset({_EVERYONE}),
    "probe": frozenset({_REDIRECTOR, _OPERATORS}),  # each one is load for a server
    "drill": frozenset({_OPERATORS}),
}


def refused(table: Table, controller: Controller, verb: str, peer: Peer) -> str | None:
    """Why ``peer`` may not use ``verb``; None if it may."""
    if peer.uid == 0 or table[verb] & {_EVERYONE, *_roles(controller, peer)}:
        return None
    names = {
        **_users(controller),
        _OPERATORS: f"the group {controller.operators}",
        _SYNC: f"the owner of {directory(controller.state_dir)}",
    }
    allowed = ", ".join(names[role] for role in sorted(table[verb]))
    return f"not for user {user_name(peer.uid)}; allowed are: {allowed} and root"


def by_hand(controller: Controller, peer: Peer) -> bool:
    """Whether ``peer`` may give an operator's orders, which skip overridable rows (see ``decide``)."""
    return peer.uid == 0 or _OPERATORS in _roles(controller, peer)


def looks(controller: Controller, peer: Peer) -> bool:
    """Whether ``peer`` may only look."""
    return peer.uid != 0 and not _roles(controller, peer)


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _users(controller: Controller) -> dict[str, str]:
    return {
        _CORE: controller.core_user,
        _SNIFFER: controller.sniffer_user,
        _PAIR: controller.pair_user,
        _REDIRECTOR: controller.redirector_user,
    }


def _roles(controller: Controller, peer: Peer) -> set[str]:
    roles = set()
    for role, name in _users(controller).items():
        with contextlib.suppress(KeyError):  # no such user here
            if peer.uid == pwd.getpwnam(name).pw_uid:
                roles.add(role)
    with contextlib.suppress(KeyError):
        if grp.getgrnam(controller.operators).gr_gid in peer.gids:
            roles.add(_OPERATORS)
    with contextlib.suppress(OSError):  # no run of failover-sync yet
        if peer.uid == directory(controller.state_dir).stat().st_uid:
            roles.add(_SYNC)
    return roles

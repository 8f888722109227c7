"""The credentials of a Unix socket's peer, from the kernel: SO_PEERCRED, and its equivalents on other systems."""

import os
import pwd
import socket
import struct
import sys

from check_failover.control import ControlError

_SOL_LOCAL, _LOCAL_PEERCRED, _LOCAL_PEEREID = 0, 1, 3  # FreeBSD and NetBSD, <sys/un.h>
_PEERGROUPS = 59  # SO_PEERGROUPS, Linux 4.13 (socket(7) does not name it; asm-generic/socket.h)
_MOST_BYTES = 1024  # Python's getsockopt refuses a longer buffer; 256 groups


class Peer:
    """The process that connected, its user and all its groups, as the kernel reports them."""

    __slots__ = ("gids", "pid", "uid")

    def __init__(self, pid: int, uid: int, gids: frozenset[int]) -> None:
        self.pid, self.uid, self.gids = pid, uid, gids


def peer_of(sock: socket.socket) -> Peer:
    """Credentials of the process that connected, with supplementary groups. Raises ControlError if unknown."""
    try:
        return _PEER_OF[sys.platform.rstrip("0123456789")](sock)
    except KeyError:
        raise ControlError(f"{sys.platform} does not tell who is at the other end of a socket") from None


def _peer_linux(sock: socket.socket) -> Peer:
    """SO_PEERCRED, SO_PEERGROUPS (unix(7))."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _PEERGROUPS, _MOST_BYTES)
        groups = frozenset(struct.unpack(f"{len(raw) // 4}I", raw))
    except OSError:  # ERANGE: in more groups than that
        groups = _groups_of(uid, gid)
    return Peer(pid, uid, groups | {gid})


def _peer_freebsd(sock: socket.socket) -> Peer:
    """LOCAL_PEERCRED (FreeBSD unix(4)): struct xucred, whose last member is a pid since FreeBSD 13."""
    raw = sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, struct.calcsize("IIh16IP"))
    _version, uid, count, *groups, pid = struct.unpack("IIh16IP", raw.ljust(struct.calcsize("IIh16IP"), b"\0"))
    return Peer(pid & 0xFFFFFFFF, uid, frozenset(groups[:count]))


def _peer_netbsd(sock: socket.socket) -> Peer:
    """LOCAL_PEEREID (NetBSD unix(4)): struct unpcbid, without supplementary groups, so they are looked up."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEEREID, 12))
    return Peer(pid, uid, _groups_of(uid, gid) | {gid})


def _groups_of(uid: int, gid: int) -> frozenset[int]:
    """A user's groups, from the user database."""
    try:
        return frozenset(os.getgrouplist(pwd.getpwuid(uid).pw_name, gid))
    except KeyError:
        return frozenset()


_PEER_OF = {"linux": _peer_linux, "freebsd": _peer_freebsd, "netbsd": _peer_netbsd}

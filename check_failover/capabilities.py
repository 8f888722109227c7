"""Keeps a daemon's capabilities from the programs that it starts."""

import ctypes
import sys

PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4  # prctl(2)


def drop_ambient() -> None:
    """Empty this thread's ambient set, which an unprivileged program would inherit (capabilities(7))."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)

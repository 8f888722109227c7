"""``failoverctl``, the operators' program. ``ctl`` is the entry point; each larger command has a module."""


class FailedError(Exception):
    """A verb is refused, or its work or a step of it is impossible: one line, exit code 1."""

"""``failoverctl``, the operators' program. ``ctl`` is the entry point; each larger command has a module."""

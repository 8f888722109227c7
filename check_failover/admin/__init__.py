"""Who operates: ``failoverctl`` and what it prints. ``ctl`` is the program, one file for each larger command."""

"""Stage 1: packets in, suspicion out. Pure: standard library only, no I/O, time is an argument.

Begin with ``traffic``.
"""

"""Stage 1: packets in, suspicion out. Pure: standard library only, no I/O, time is an argument.

Reading order: ``traffic``, ``detectors``, ``thresholds``, ``flowtable``, ``flows``, ``dialects``.
"""

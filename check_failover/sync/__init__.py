"""Who keeps the data in step: ``failover-sync`` (``run``), its steps, and what it refuses (``guard``).

``hosts`` runs a step here or over ssh, ``rsync`` moves the differences, ``remote.sh`` switches on the receiving server,
``home`` is the controller: who serves, the lock, the record. The record itself is read through ``syncstate``.
"""

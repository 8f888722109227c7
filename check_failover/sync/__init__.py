"""Data synchronization: the program ``failover-sync`` (``run``), its ``steps``, and its refusals (``guard``).

``hosts`` runs a step here or over ssh, ``rsync`` copies the differences, ``remote.sh`` switches copies on the receiving
server, ``controller_access`` gives the serving server, the lock and the record. Other wings read it by ``syncstate``.
"""

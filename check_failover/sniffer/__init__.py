"""failover-sniffer: watches the clients' traffic, probes on suspicion, submits verdicts. Three storeys:

- ``stage1``   pure: packets in, suspicion out
- ``capture``  taps on the interfaces, kernel filters, sampling: frames in, packets out; it knows no monitor
- the process  this folder's modules: the loop, a monitor for each service, its investigations (stage 2), rescue, the
  link to the redirector, effects (``actions``), evidence, replay of capture files

Reading order: ``loop``, ``monitor``, ``stage1.traffic``.
"""

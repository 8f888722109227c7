"""check_failover: Nagios or Icinga as the brain of a fail-over controller. The map of the house.

Words (used everywhere): *service*, *service address*, *controller*, *primary*, *standby*, *redirect* (the NAT rule),
*target* (``primary`` or ``standby``), *fail over*, *fail back*, *check* (a program Nagios runs), *probe* (the I/O a
check or the sniffer does), *suspicion* (stage 1's output), *verdict* (stage 2's output), *passive result*, *hold* (an
operator forbids any flip), *drain*, *hold-down* (minimum time between two flips), *sync age* (seconds since the
standby's data was last equal to the primary's), *stranded flow* (an open connection whose server is gone).

The ground, which every wing may import and which imports no wing:

- ``model``    records and enums that cross rooms
- ``records``  the journal's entry and a service's status, which the redirector writes and the others read, as JSON
- ``decide``   (facts, policy, situation) -> decision; tables that read as the policy
- ``damping``  how often an automatic fail-back may happen
- ``config``   load, validate, freeze the config; ``config_shape``: by its JSON schema, with faults in words
- ``places``   where things are on each system
- ``control``  the language of the two daemons' sockets, client's end; ``listening``: the daemons'; ``peer``: who asks
- ``capabilities``  a daemon's privilege is not handed down to what it starts
- ``story``    what people are told of an incident, line by line
- ``reach``    which server clients may have reached, and when: the redirector keeps it, the sync asks it
- ``syncstate``  the record of how fresh the standby's data is: ``sync`` writes it, the others read it

A wing for each process; wings meet through ``control`` alone:

- ``sniffer``     watches the clients' traffic (stage 1), probes on suspicion (stage 2), submits verdicts
- ``redirector``  the only wing that touches NAT; keeps the target across restarts; journal
- ``handlers``    what the core calls: event handler, notification command
- ``admin``       ``failoverctl``
- ``sync``        keeps the standby's data in step
- ``pair``        two controllers: each follows the other's targets

Wings that only serve the others, never one another: ``checks`` (probes and plugins), ``transports`` (results to the
core), ``sms`` (texts to people). Each has a literal dict as registry: a new one is one file and one line,
and what the registry's docstring lists.

The way of a fault::

    frame -> capture -> stage 1 -> suspicion -> probes -> verdict -> transport -> Nagios/Icinga
    Nagios/Icinga -> failover_event -> redirector socket -> decide -> flip, read back, repair -> journal -> "redirect"
    Nagios/Icinga -> failover_sms -> spool -> gateway
"""

__version__ = "0.1.0"

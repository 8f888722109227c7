"""check_failover: Nagios or Icinga as the brain of a fail-over controller. The map of the packages.

Read ``decide``, then ``sniffer.monitor``, then ``redirector.steering``.

Words: *service*, *service address*, *controller*, *primary*, *standby*, *redirect* (the NAT rule), *target*
(``primary`` or ``standby``), *fail over*, *fail back*, *check* (a program that Nagios runs), *probe* (the I/O of a
check or the sniffer), *suspicion* (stage 1's output), *verdict* (stage 2's output), *passive result*, *hold* (an
operator forbids any flip), *drain*, *hold-down* (minimum time between two flips), *sync age* (seconds since the
standby's data was last equal to the primary's), *stranded flow* (an open connection whose server is gone).

Common modules, which every package may import and which import no package:

- ``model`` (shared records and enums), ``records`` (journal entry and service status, to and from JSON)
- ``decide``: (facts, policy, situation) -> decision, by tables; ``damping``: limits automatic flips
- ``config`` (loads and validates the config), ``config_shape`` (its JSON schema), ``places`` (default paths)
- ``control`` (the sockets' protocol, client side), ``listening`` (server side), ``peer`` (the other end's credentials),
  ``rights`` (who may use which verb)
- ``bounded`` (sockets with a deadline and a size for all that a peer sends), ``http_client`` (requests over them),
  ``programs`` (runs a program, with a limit of time and of what is read of its output)
- ``notify`` (readiness and log), ``capabilities`` (not for started programs), ``rawip`` (checksums of packets)
- ``story`` (an incident in lines of text), ``syncstate`` (the sync record: ``sync`` writes it, the others read it),
  ``reach`` (which server clients may have reached, and when: the redirector keeps it, ``sync`` reads it)

A package for each process; they communicate through ``control`` only:

- ``sniffer``     ``capture`` (packets), ``stage1`` (traffic -> suspicion), stage 2 (``monitor``: probes -> verdict)
- ``redirector``  the only package that touches NAT (``nftables``, ``ipfilter``): ``steering`` flips, ``repair`` frees
  connections, ``store`` keeps target and journal, ``afterwards`` sends passive results
- ``handlers``    the core's event handler and notification command
- ``admin``       ``failoverctl``
- ``sync``        copies the primary's data to the standby
- ``pair``        two controllers: each follows the other's targets

Packages that serve these and never import one another: ``checks`` (probes and plugins), ``transports`` (results to the
core), ``sms`` (spool, gateways). Each has a literal dict as registry: a new entry is one module, one line, and the
places that the registry's docstring lists.

The path of a fault::

    frame -> capture -> stage 1 -> suspicion -> probes -> verdict -> transport -> Nagios/Icinga
    Nagios/Icinga -> failover_event -> redirector socket -> decide -> flip, read back, repair -> journal -> "redirect"
    Nagios/Icinga -> failover_sms (handlers.sms writes the text) -> spool -> gateway
"""

__version__ = "0.1.0"

"""Programs that the core runs: the event handler, the notification command and check_failover_sms.

The core starts a handler for each event, so handlers import little.
"""

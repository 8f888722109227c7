"""Whom the core calls: the event handler and the notification command.

The core starts them anew for each event, so they import little.
"""

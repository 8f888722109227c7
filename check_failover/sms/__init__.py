"""Who tells people: ``send(text, numbers)`` for each SMS gateway. A new gateway is one file and one line."""

"""The redirect on the BSDs: IP Filter, by its own programs. Begin with ``redirect``."""

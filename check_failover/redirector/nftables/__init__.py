"""The redirect on Linux: our nftables table, its connections in conntrack. Begin with ``redirect``."""

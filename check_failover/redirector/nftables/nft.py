"""Loads rules with nft(8): a text of commands is one transaction. ``table`` does everything that must be quick."""

import subprocess

from check_failover.redirector import RedirectError

NFT = "/usr/sbin/nft"
TIMEOUT = 30.0  # seconds; a thousand services take three


def run(commands: str) -> None:
    """All commands or none. Raises RedirectError with nft's own first line."""
    try:
        done = subprocess.run(
            [NFT, "-f", "-"],
            input=commands,
            text=True,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
            env={"LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise RedirectError(f"nft: {NFT} is not there: install nftables") from None
    except (OSError, subprocess.SubprocessError) as error:
        raise RedirectError(f"nft: {error}") from None
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["failed without a word"]
        raise RedirectError(f"nft: {lines[0].rpartition('Error: ')[2]}")

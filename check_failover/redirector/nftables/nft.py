"""Loads rules with nft(8): a text of commands is one transaction. ``table`` does everything that must be quick."""

from check_failover import programs
from check_failover.redirector import RedirectError

NFT = "/usr/sbin/nft"
TIMEOUT = 30.0  # seconds; a thousand services take three


def run(commands: str) -> None:
    """All commands or none. Raises RedirectError with nft's own first line."""
    try:
        done = programs.run([NFT, "-f", "-"], TIMEOUT, stdin=commands.encode())
    except FileNotFoundError:
        raise RedirectError(f"nft: {NFT} is not there: install nftables") from None
    except (OSError, programs.LateError) as error:
        raise RedirectError(f"nft: {error}") from None
    if done.code:
        lines = [line.strip() for line in done.err.decode(errors="replace").splitlines() if line.strip()]
        raise RedirectError(f"nft: {(lines or ['failed without a word'])[0].rpartition('Error: ')[2]}")

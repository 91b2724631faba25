"""The command line: `plexus`. `plexus up` runs a whole fleet on this machine; the other commands operate any fleet."""

import sys


def main() -> None:
    """The console script. Imports nothing heavy before it knows what is asked."""
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        from shared.version import own_version

        print(f"plexus {own_version()}")
        return
    from gateway.cli.app import run

    sys.exit(run(sys.argv[1:]))

"""The command line: `plexus`. `plexus up` runs a whole fleet on this machine; the other commands operate any fleet."""

import sys

INTERRUPTED = 128 + 2  # as shells say it of what Ctrl-C ended


def main() -> None:
    """The console script. Imports nothing heavy before it knows what is asked."""
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        from shared.version import own_version

        print(f"plexus {own_version()}")
        return
    try:
        from gateway.cli.app import run

        status = run(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)

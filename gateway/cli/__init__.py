"""The command line: `plexus`. `plexus up` runs a whole fleet on this machine; the other commands operate any fleet."""

import sys


def main() -> None:
    """The console script. Imports nothing heavy before it knows what is asked."""
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        print(f"plexus {version()}")
        return
    from gateway.cli.app import run

    sys.exit(run(sys.argv[1:]))


def version() -> str:
    """The installed version of the distribution."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("plexus-fleet")
    except PackageNotFoundError:
        return "0+unknown"

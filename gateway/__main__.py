"""`python -m gateway [--config FILE]`: one gateway, until SIGTERM or SIGINT."""

import argparse
import gc
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from gateway.serve import serve
from shared import collector, log, settings
from shared.errors import PlexusError


def main(arguments: list[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway", description="One Plexus gateway.")
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--listen", help="host:port of the API")
    parser.add_argument("--metrics-listen", help="host:port of the metrics")
    parser.add_argument("--nats-url", help="URL of the nats-server")
    parser.add_argument("--log-level", choices=log.LEVELS)
    parser.add_argument("--json", action="store_true", help="print one line with the addresses when ready")
    given = parser.parse_args(arguments)
    overrides = {
        "listen": given.listen,
        "metrics_listen": given.metrics_listen,
        "bus": {"url": given.nats_url},
        "log_level": given.log_level,
    }
    try:
        chosen = settings.load(settings.GatewaySettings, given.config, overrides)
        log.setup(chosen.log_level, "gateway")
        uvloop.run(serve(chosen, on_ready=partial(_ready, as_json=given.json)))
    except PlexusError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _ready(ready: dict[str, Any], *, as_json: bool) -> None:
    gc.collect()
    collector.keep_loaded()
    if as_json:
        print(json.dumps(ready), flush=True)


if __name__ == "__main__":
    sys.exit(main())

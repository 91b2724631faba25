"""``plexus-worker``: the agent of a host."""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from shared import log as logs
from shared.errors import PlexusError
from shared.settings import WorkerSettings, load
from worker.agent.agent import Agent
from worker.agent.identity import worker_name

log = logs.get("worker")


def main(argv: list[str] | None = None) -> int:
    """Run the agent until SIGTERM (drain; a second one: at once) or SIGINT (at once); returns the exit code."""
    options = _parser().parse_args(argv)
    overrides = {
        "name": options.name,
        "state_dir": options.state_dir,
        "cores": options.cores,
        "device": options.device,
        "log_level": options.log_level,
        "bus": {"url": options.nats_url, "user": options.nats_user, "password": options.nats_password},
    }
    try:
        settings = load(WorkerSettings, options.config, overrides)
        name = worker_name(settings)
        logs.setup(settings.log_level, f"worker:{name}")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, name, options.json))
    except (PlexusError, ValueError, OSError) as error:
        print(f"plexus-worker: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plexus-worker", description="Run models on this host for a Plexus fleet.")
    parser.add_argument("--config", type=Path, help="settings file (TOML)")
    parser.add_argument("--name", help="this worker's name in the fleet (default: kept in the state directory)")
    parser.add_argument("--state-dir", type=Path, help="where the name is kept")
    parser.add_argument("--nats-url", help="nats://host:port, several separated by commas")
    parser.add_argument("--nats-user")
    parser.add_argument("--nats-password")
    parser.add_argument("--cores", type=int, help="cores for replicas (default: all)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:0 …")
    parser.add_argument("--log-level", choices=logs.LEVELS)
    parser.add_argument(
        "--json", action="store_true", help='print {"worker": name, "pid": pid} when it is in the fleet'
    )
    return parser


async def _serve(settings: WorkerSettings, name: str, print_json: bool) -> None:
    agent = Agent(settings, name)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, agent.drain)
    loop.add_signal_handler(signal.SIGINT, agent.stop)

    def on_ready() -> None:
        if print_json:
            print(json.dumps({"worker": name, "pid": os.getpid()}), flush=True)

    await agent.run(on_ready)


if __name__ == "__main__":
    sys.exit(main())

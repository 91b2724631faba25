"""Every command and its options. The bodies import what they need, so that a short command starts fast."""

import asyncio
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import config as config_commands
from gateway.cli import placement
from gateway.cli.errors import CliError
from gateway.cli.options import (
    ConfigOption,
    DataDirOption,
    JsonOption,
    NatsUrlOption,
    TimeoutOption,
    WaitOption,
    bus_settings,
    data_dir_of,
)
from shared.records import MAX_REPLICAS

if TYPE_CHECKING:
    from gateway.cli.home import DataDir, FleetFile
    from gateway.cli.tables import Snapshot
    from shared.settings import BusSettings

app = typer.Typer(
    name="plexus",
    help="Serve language models from a fleet of hosts behind one API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(placement.commands)
app.add_typer(config_commands.app, name="config", rich_help_panel="Operate")

PIPED_WIDTH = 200  # of tables that no terminal limits


def run(argv: list[str]) -> int:
    """Run a command line and return its exit status. An error that has a remedy is one line on stderr."""
    from shared.errors import PlexusError

    try:
        app(argv, prog_name="plexus")
    except (CliError, PlexusError) as error:
        print(f"plexus: {error}", file=sys.stderr)
        if "--json" in argv:
            print(json.dumps({"error": str(error)}), flush=True)
        return 1
    return 0


# --- a fleet on this machine ---------------------------------------------------------------------------------


@app.command(rich_help_panel="Run")
def up(
    model: Annotated[
        list[str] | None,
        typer.Option("--model", help="A hub id or a directory; can be given again.", show_default="plexus-demo"),
    ] = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Workers; they share cores and memory.")] = 1,
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the API; 0: a free one.")] = 31313,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port", min=0, max=65535, help="Port of the metrics; 0: a free one.", show_default="port + 1"
        ),
    ] = None,
    data_dir: DataDirOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Logs of all processes on stderr, not in files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready, for scripts.")] = False,
) -> None:
    """Run a whole fleet on this machine: nats-server, a gateway, workers, models."""
    from gateway.cli.screen import open_screen
    from gateway.cli.up import UpOptions
    from gateway.cli.up import up as run_up
    from shared import log

    log.setup("info" if verbose else "error", "up")
    options = UpOptions(
        models=tuple(model or ()),
        workers=workers,
        host=host,
        port=port,
        metrics_port=metrics_port if metrics_port is not None else (port + 1) % 65536 if port else 0,
        verbose=verbose,
    )
    home = data_dir_of(data_dir)
    screen = open_screen(live=not as_json and not verbose)

    def announce(fleet: "FleetFile") -> None:
        screen.close()
        if as_json:
            print(json.dumps(fleet.public() | {"data_dir": str(home.path), "logs": str(home.logs)}), flush=True)
        else:
            print(_welcome(fleet, home, is_elsewhere=data_dir is not None), flush=True)

    with screen:
        asyncio.run(run_up(options, home, screen, announce))
    screen.say("stopped")


def _welcome(fleet: "FleetFile", home: "DataDir", *, is_elsewhere: bool) -> str:
    body = {"model": fleet.models[0], "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True}
    where = f" --data-dir {shlex.quote(str(home.path))}" if is_elsewhere else ""
    return f"""
Plexus is ready.

  API      {fleet.api}
  metrics  {fleet.metrics}
  NATS     {fleet.nats}
  models   {", ".join(fleet.models)}
  logs     {home.logs}

Try it:

  curl -N {fleet.api}/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'

or, in another terminal: plexus chat{where}. Ctrl-C stops everything.
"""


@app.command(rich_help_panel="Run")
def serve(
    config: ConfigOption = None,
    listen: Annotated[str | None, typer.Option("--listen", help="host:port of the API.")] = None,
    metrics_listen: Annotated[str | None, typer.Option("--metrics-listen", help="host:port of the metrics.")] = None,
    nats_url: Annotated[str | None, typer.Option("--nats-url", help="The nats-server.")] = None,
    log_level: Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line when ready, for scripts.")] = False,
) -> None:
    """Run a gateway of a fleet. Further settings: config/gateway.toml, or PLEXUS_GATEWAY__... in the environment."""
    from gateway.serve import serve as run_serve
    from shared import log
    from shared.files import settings_file
    from shared.settings import GatewaySettings, load

    overrides = {
        "listen": listen,
        "metrics_listen": metrics_listen,
        "log_level": log_level,
        "bus": {"url": nats_url},
    }
    settings = load(GatewaySettings, settings_file("gateway", config), overrides)
    log.setup(settings.log_level, "gateway")

    def announce(facts: dict[str, Any]) -> None:
        if as_json:
            print(json.dumps(facts), flush=True)

    asyncio.run(run_serve(settings, on_ready=announce))


# --- operating a fleet ---------------------------------------------------------------------------------------


@app.command(rich_help_panel="Operate")
def status(
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show workers, devices, memory, replicas, models and queues."""
    from gateway.cli.tables import snapshot_json, status_view

    _show(bus_settings(data_dir, nats_url, config), as_json, snapshot_json, status_view)


@app.command(rich_help_panel="Operate")
def models(
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the catalogue: what may be asked for, what is loaded, what waits."""
    from gateway.cli.tables import models_view, snapshot_json

    _show(
        bus_settings(data_dir, nats_url, config),
        as_json,
        lambda snapshot: snapshot_json(snapshot)["models"],
        lambda snapshot: models_view(snapshot, sources=True),
    )


@app.command(rich_help_panel="Operate")
def load(
    model: Annotated[str, typer.Argument(help="A model of the catalogue; or a hub id or a directory, to add it.")],
    on: Annotated[list[str] | None, typer.Option("--on", help="Only on this worker; can be given again.")] = None,
    replicas: Annotated[int, typer.Option("--replicas", min=1, max=MAX_REPLICAS, help="How many copies.")] = 1,
    wait: WaitOption = False,
    timeout: TimeoutOption = 3600.0,
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Want a model loaded."""
    from gateway.cli.operate import load as run_load
    from gateway.cli.screen import open_screen

    settings = bus_settings(data_dir, nats_url, config)
    with open_screen(live=wait) as screen:
        asyncio.run(
            run_load(settings, model, on=on or [], replicas=replicas, wait=wait, timeout_s=timeout, screen=screen)
        )


@app.command(rich_help_panel="Operate")
def unload(
    model: Annotated[str, typer.Argument(help="A model of the catalogue.")],
    on: Annotated[list[str] | None, typer.Option("--on", help="Only from this worker; can be given again.")] = None,
    wait: WaitOption = False,
    timeout: TimeoutOption = 600.0,
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Want a model unloaded; what runs is finished first."""
    from gateway.cli.operate import unload as run_unload
    from gateway.cli.screen import open_screen

    settings = bus_settings(data_dir, nats_url, config)
    with open_screen(live=wait) as screen:
        asyncio.run(run_unload(settings, model, on=on or [], wait=wait, timeout_s=timeout, screen=screen))


@app.command(rich_help_panel="Operate")
def chat(
    model: Annotated[str | None, typer.Argument(help="A model.", show_default="the first that the API lists")] = None,
    url: Annotated[str | None, typer.Option("--url", help="A gateway's URL, ending in /v1.")] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Talk to a model in the terminal."""
    from gateway.cli.chat import chat as run_chat

    run_chat(url or data_dir_of(data_dir).read().api, model)


@app.command("nats-config", rich_help_panel="Operate")
def nats_config(config: ConfigOption = None) -> None:
    """Print the configuration of a production nats-server; passwords come from its environment."""
    from shared.files import settings_file
    from shared.server_config import render
    from shared.settings import BrokerSettings, load

    print(render(load(BrokerSettings, settings_file("broker", config))), end="")


@app.command("settings", rich_help_panel="Operate")
def show_settings(process: Annotated[str, typer.Argument(help="gateway, models, worker, broker or operator.")]) -> None:
    """Print the annotated settings file of a process: every option with its default."""
    from shared.files import example

    try:
        print(example(f"{Path(process).name}.toml").read_text(), end="")
    except FileNotFoundError as error:
        raise CliError(str(error)) from error


@app.command("version", rich_help_panel="Operate")
def show_version() -> None:
    """Print the version."""
    from shared.version import own_version

    print(f"plexus {own_version()}")


# --- what the commands share ---------------------------------------------------------------------------------


def _show(
    settings: "BusSettings",
    as_json: bool,
    to_json: "Callable[[Snapshot], Any]",
    to_view: "Callable[[Snapshot], Any]",
) -> None:
    from rich.console import Console

    from gateway.cli.operate import snapshot

    now = asyncio.run(snapshot(settings))
    if as_json:
        print(json.dumps(to_json(now)))
    else:
        Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(to_view(now))

"""Commands about placement: why things are where they are, what would happen if, and what happened."""

import asyncio
import json
from typing import Annotated

import typer

from gateway.cli.errors import CliError
from gateway.cli.options import ConfigOption, DataDirOption, JsonOption, NatsUrlOption, bus_settings

commands = typer.Typer()


@commands.command(rich_help_panel="Operate")
def explain(
    what: Annotated[str, typer.Argument(help="A model of the catalogue, or the id of a request.")],
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say why a model is where it is (or is not), or where a request is."""
    from gateway.cli import explain as explaining

    settings = bus_settings(data_dir, nats_url, config)
    facts = asyncio.run(explaining.explain(settings, what))
    print(json.dumps(facts) if as_json else explaining.as_text(facts))


@commands.command(rich_help_panel="Operate")
def plan(
    what_if: Annotated[
        str,
        typer.Option("--what-if", help='"load MODEL", "unload MODEL", "drain WORKER" or "lose WORKER"; else as it is.'),
    ] = "",
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what the placement leader would do if something happened; nothing is done."""
    from gateway.cli import explain as explaining

    change, _, name = what_if.strip().partition(" ")
    if what_if and (change not in explaining.CHANGES or not name.strip()):
        raise CliError(f"{what_if!r} is no such question. Ask for: {', '.join(explaining.CHANGES)}, and a name.")
    settings = bus_settings(data_dir, nats_url, config)
    foreseen = asyncio.run(explaining.foresee(settings, change or "none", name.strip()))
    print(json.dumps(foreseen) if as_json else explaining.steps_as_text(foreseen))


@commands.command(rich_help_panel="Operate")
def events(
    since: Annotated[str, typer.Option("--since", help="Begin so long ago: 30s, 10m, 2h, 3d.")] = "",
    model: Annotated[str, typer.Option("--model", help="Only of this model.")] = "",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for more.")] = True,
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow what placement decides, and why."""
    from gateway.cli import events as following

    settings = bus_settings(data_dir, nats_url, config)
    show = following.as_json if as_json else following.as_line
    try:
        asyncio.run(following.follow(settings, following.seconds(since), model, follow, lambda one: print(show(one))))
    except KeyboardInterrupt:
        return


@commands.command(rich_help_panel="Operate")
def drain(
    worker: Annotated[str, typer.Argument(help="A worker.")],
    undo: Annotated[bool, typer.Option("--undo", help="Use it again.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is empty.")] = False,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that --wait waits at most.")] = 600.0,
    data_dir: DataDirOption = None,
    nats_url: NatsUrlOption = None,
    config: ConfigOption = None,
) -> None:
    """Empty a worker: what it serves is moved, running requests are finished or handed over."""
    from gateway.cli import drain as draining

    settings = bus_settings(data_dir, nats_url, config)
    asyncio.run(draining.drain(settings, worker, undo=undo, wait_s=timeout if wait else 0.0))

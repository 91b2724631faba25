"""Options that several commands have, and the fleet that they mean."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.cli.home import DataDir
    from shared.settings import BusSettings

DataDirOption = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Directory of the embedded fleet.", show_default="~/.local/state/plexus"),
]
NatsUrlOption = Annotated[
    str | None,
    typer.Option("--nats-url", help="Operate the fleet of this nats-server, not the embedded one of this host."),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file; options and environment go before it.", show_default="/etc/plexus"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
WaitOption = Annotated[bool, typer.Option("--wait", help="Show progress, and return when it is done.")]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="Seconds that --wait waits at most.")]


def data_dir_of(given: Path | None) -> "DataDir":
    """The data directory that is meant."""
    from gateway.cli.home import DataDir
    from shared.settings import state_home

    return DataDir(given or state_home() / "plexus")


def bus_settings(data_dir: Path | None, nats_url: str | None, config: Path | None) -> "BusSettings":
    """How to reach the fleet that is meant.

    1. The embedded one of --data-dir. 2. The one that --nats-url, the environment or a settings file names.
    3. The embedded one of the default directory. Raises NoFleet.
    """
    from shared.files import settings_file
    from shared.settings import BusSettings, OperatorSettings
    from shared.settings import load as load_settings

    if data_dir is None:  # 2
        named = load_settings(OperatorSettings, settings_file("operator", config), {"bus": {"url": nats_url}})
        if named.bus.url:
            return named.bus
    fleet = data_dir_of(data_dir).read()  # 1, 3
    return BusSettings(url=fleet.nats, user=fleet.user, password=fleet.password)

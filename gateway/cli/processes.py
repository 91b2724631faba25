"""The processes of an embedded fleet: what each is started with."""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.cli.child import Child
from gateway.cli.errors import CliError, PortTaken
from gateway.cli.home import DataDir
from shared.host import num_cores
from shared.settings import BusSettings

MEMORY_FRACTION = 0.6  # of each device, for all workers together
DRAIN_S = 5.0  # what a worker gets to finish its jobs when the fleet stops


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a gateway listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def near(self) -> "Address":
        """The same as a client on this host would name it."""
        return Address(host={"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), port=self.port)


def free_address(host: str, port: int, option: str) -> Address:
    """`port` of `host`, or a free one for 0. Raises CliError (PortTaken), which names the option to change."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, UnicodeError) as error:
            raise _refusal(error, host, port, option) from error
        return Address(host=host, port=int(probe.getsockname()[1]))


def _refusal(error: OSError | UnicodeError, host: str, port: int, option: str) -> CliError:
    if isinstance(error, socket.gaierror | UnicodeError):
        return CliError(f"the name {host!r} leads to no address. Choose another with --host.")
    if error.errno == errno.EADDRINUSE:
        return PortTaken(host, port, option)
    if error.errno == errno.EADDRNOTAVAIL:
        return CliError(f"{host} is no address of this machine. Choose another with --host (0.0.0.0 means all).")
    if error.errno == errno.EACCES:
        return CliError(f"port {port} on {host} may not be used by this user. Choose one from 1024 on with {option}.")
    return CliError(f"cannot listen on port {port} of {host}: {error.strerror or error}. Change --host or {option}.")


def gateway_child(
    home: DataDir, bus: BusSettings, api: Address, metrics: Address, *, verbose: bool, on_change: Callable[[str], None]
) -> Child:
    """The gateway."""
    settings = {"listen": str(api), "metrics_listen": str(metrics), "bus": bus.model_dump(exclude_defaults=True)}
    return _child("gateway", "gateway", home, settings, verbose, on_change)


def worker_child(
    number: int, workers: int, home: DataDir, bus: BusSettings, *, verbose: bool, on_change: Callable[[str], None]
) -> Child:
    """Worker `number` (from 1) of `workers`, which share the host's cores and memory evenly."""
    name = f"worker-{number}"
    settings = {
        "name": name,
        "state_dir": str(home.path / name),
        "cores": max(1, num_cores() // workers),
        "memory_fraction": round(MEMORY_FRACTION / workers, 3),
        "drain_grace_s": DRAIN_S,
        "bus": bus.model_dump(exclude_defaults=True),
    }
    return _child(name, "worker", home, settings, verbose, on_change)


def _child(
    name: str, module: str, home: DataDir, settings: dict[str, Any], verbose: bool, on_change: Callable[[str], None]
) -> Child:
    config = home.path / f"{name}.toml"
    config.unlink(missing_ok=True)
    with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(toml(settings))
    # The environment goes before the file: it may set what is not ours, but not where this fleet lives.
    ours = tuple(f"PLEXUS_{module.upper()}__{key.upper()}" for key in settings)
    return Child(
        name,
        # -P: the packages are those that are installed, not folders of wherever the command was given.
        [sys.executable, "-P", "-m", module, "--config", str(config)],
        {key: value for key, value in os.environ.items() if not key.upper().startswith(ours)},
        log=None if verbose else home.logs / f"{name}.log",
        on_change=on_change,
    )


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML: strings, numbers, booleans, and tables of those."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in settings.items() if not isinstance(value, Mapping)]
    tables = [f"\n[{key}]\n{toml(value)}" for key, value in settings.items() if isinstance(value, Mapping)]
    return "".join(f"{line}\n" for line in plain) + "".join(tables)

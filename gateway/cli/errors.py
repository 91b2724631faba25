"""What goes wrong on the command line. Each message is a sentence for the person at the terminal, with the remedy."""

from pathlib import Path


class CliError(Exception):
    """The command cannot do what was asked. Shown as one line; the exit status is 1."""


class DataDirInUse(CliError):
    """Another `plexus up` owns the data directory."""

    def __init__(self, path: Path, pid: int | None) -> None:
        owner = f"plexus up with pid {pid}" if pid else "another plexus up"
        super().__init__(f"{path} is in use by {owner}. Stop it, or choose another directory with --data-dir.")
        self.path, self.pid = path, pid


class PortTaken(CliError):
    """The address that was asked for is not free."""

    def __init__(self, host: str, port: int, option: str) -> None:
        super().__init__(f"port {port} on {host} is taken. Choose another with {option} (0 picks a free one).")
        self.host, self.port = host, port


class NoFleet(CliError):
    """There is nothing to talk to."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"no fleet found: nothing runs in {path}. Start one with `plexus up`, or name one with --data-dir or "
            "--nats-url."
        )
        self.path = path


class UnknownModel(CliError):
    """The model is not in the catalogue and cannot be added by its name alone."""

    def __init__(self, model: str, known: list[str]) -> None:
        have = ", ".join(sorted(known)) or "none yet"
        super().__init__(
            f"{model!r} is not in the catalogue (it holds: {have}), and it is neither a directory nor a hub id such "
            "as org/name."
        )
        self.model = model


class ModelFailed(CliError):
    """No worker could load the model."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"{model} could not be loaded: {reason}")
        self.model, self.reason = model, reason


class ChildFailed(CliError):
    """A process of the fleet ended before the fleet was ready, or keeps ending."""

    def __init__(self, name: str, status: int, log: Path | None, tail: str) -> None:
        where = f" Its log is {log}; it ends with:\n{tail}" if log and tail else ""
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        super().__init__(f"{name} {how}.{where}")
        self.name, self.status = name, status

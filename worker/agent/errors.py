"""Why a model does not run on this host. The message goes into the worker's record, for operators to read."""

from shared.errors import PlexusError
from worker.models.errors import gigabytes


class AgentError(PlexusError):
    """Base of everything that keeps a replica, or the agent, from running."""


class NotEnoughMemory(AgentError):
    """The device has no room beside what is promised already. Unload something, or assign the model elsewhere."""

    def __init__(self, device: str, needed_bytes: int, free_bytes: int, reserved_bytes: int) -> None:
        super().__init__(
            f"needs {gigabytes(needed_bytes)} on {device}, where {gigabytes(free_bytes)} is free and "
            f"{gigabytes(reserved_bytes)} reserved; unload another model"
        )
        self.device = device
        self.needed_bytes = needed_bytes
        self.free_bytes = free_bytes
        self.reserved_bytes = reserved_bytes


class Underestimated(AgentError):
    """It takes more than it was promised or granted. Promise it what it needs; the leader does so by itself."""

    def __init__(self, reason: str, device: str, needed_bytes: int, had_bytes: int) -> None:
        super().__init__(
            f"{reason}; it had {gigabytes(had_bytes)} on {device} and is to have {gigabytes(needed_bytes)}"
        )
        self.device = device
        self.needed_bytes = needed_bytes
        self.had_bytes = had_bytes


class NoSuchDevice(AgentError):
    """The assignment, or the setting, names a device that this host does not have."""

    def __init__(self, device: str, known: list[str]) -> None:
        super().__init__(f"there is no device {device} on this host; it has {', '.join(known) or 'none'}")
        self.device = device


class TooFewDevices(AgentError):
    """A replica over more devices than this host has was assigned. Ask for fewer, or assign it elsewhere."""

    def __init__(self, wanted: int, known: list[str]) -> None:
        super().__init__(f"it is to run over {wanted} devices, but this host has {len(known)} ({', '.join(known)})")


class FetchFailed(AgentError):
    """The model's files cannot be had."""


class FrontFailed(AgentError):
    """The front ended on its own."""


class NameTaken(AgentError):
    """Another agent with this name is alive. Give one of them another name, or another state directory."""

    def __init__(self, name: str, host: str, pid: int) -> None:
        super().__init__(
            f"a worker named {name!r} runs already (host {host}, process {pid}); "
            "stop it, or give this one another --name or --state-dir"
        )

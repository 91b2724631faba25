"""What can go wrong in a front."""

from shared.errors import PlexusError
from shared.messages import FailureKind
from worker.protocol import FatalKind


class Unservable(PlexusError):
    """This job cannot be served as it is; it turns into a `Failed` item for the job's owner."""

    def __init__(
        self, kind: FailureKind, message: str, param: str | None = None, *, tokens: int = 0, limit: int = 0
    ) -> None:
        super().__init__(message)
        self.kind: FailureKind = kind
        self.message = message
        self.param = param
        self.tokens = tokens  # of the prompt, when it is longer than the context
        self.limit = limit


class RankFault(PlexusError):
    """The rank broke the protocol. It is ended and started again."""


class LoadFailed(PlexusError):
    """The replica cannot be brought up as it is configured. The front exits; its agent tries again later."""

    def __init__(self, reason: str, kind: FatalKind = "") -> None:
        super().__init__(reason)
        self.kind: FatalKind = kind

"""What can go wrong in `shared`, and what to do about it.

Classes are told apart by type, never by the text of a message; the fields carry what a handler needs.
"""


class PlexusError(Exception):
    """Base of every error that this project raises on purpose."""


class SettingsError(PlexusError):
    """A setting is unknown or has a bad value. Remedy: correct the key or value that the message names."""


class CatalogueError(SettingsError):
    """The file of the catalogue is refused as a whole. The message says where, what and the remedy."""

    def __init__(self, path: str, line: int, problem: str, remedy: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}. Remedy: {remedy}.")
        self.path = path
        self.line = line
        self.problem = problem
        self.remedy = remedy


class BrokerError(PlexusError):
    """The nats-server could not be found, started or stopped. Remedy: read the log file that the message names."""


class BusError(PlexusError):
    """Base of every failure on the bus. `err_code` is JetStream's own code, 0 when there is none."""

    err_code: int = 0


class NoResponders(BusError):
    """Nobody listens on the subject: the process behind it is gone, or not there yet. Known within a round trip."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody listens on {subject}")
        self.subject = subject


class BusTimeout(BusError):
    """Somebody may have listened, but no answer came in time. The request may or may not have had its effect."""

    def __init__(self, subject: str, timeout_s: float) -> None:
        super().__init__(f"no answer from {subject} within {timeout_s:g} s")
        self.subject = subject
        self.timeout_s = timeout_s


class BusUnavailable(BusError):
    """There is no connection, it was lost while waiting, or too much is waiting for it.

    The bus reconnects by itself, for ever. Remedy: try again later, or start the nats-server.
    """


class BadSubject(BusError):
    """A subject that the server would refuse, with the connection as the price. Remedy: correct the sender."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"{subject[:120]!r} is no valid subject")
        self.subject = subject


class PayloadTooLarge(BusError):
    """The message, headers included, is over the server's limit. Remedy: send less, or raise `max_payload`."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes is over the server's limit of {limit} bytes (max_payload)")
        self.size = size
        self.limit = limit


class QueueFull(BusError):
    """The queue holds as many jobs, or as many bytes, as it may. Remedy: try again later."""

    err_code = 10077

    def __init__(self, subject: str) -> None:
        super().__init__(f"the queue {subject} is full")
        self.subject = subject


class WrongRevision(BusError):
    """Somebody else changed the key since it was read. Remedy: read it again and decide anew."""

    err_code = 10071

    def __init__(self, key: str, revision: int) -> None:
        super().__init__(f"{key} is no longer at revision {revision}")
        self.key = key
        self.revision = revision


class ApiError(BusError):
    """JetStream refused a request. `err_code` says why; `code` is the HTTP-like class of it."""

    def __init__(self, subject: str, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{subject}: {description} (code {code}, err_code {err_code})")
        self.subject = subject
        self.code = code
        self.err_code = err_code
        self.description = description

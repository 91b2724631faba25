"""What can go wrong in the engine. Each class says what to do about it."""


class EngineError(Exception):
    """Base of the engine's own errors."""


class UnsupportedArchitecture(EngineError):
    """This engine cannot compute the model rightly. Use a model of another architecture."""

    def __init__(self, architecture: str, reason: str) -> None:
        super().__init__(f"{architecture} cannot be served by this engine: {reason}")
        self.architecture = architecture
        self.reason = reason


class NotFinite(EngineError):
    """The model gave logits that are not numbers, so no token can be chosen. Fails the request that met it."""

    def __init__(self) -> None:
        super().__init__("the model's logits are not finite; the weights may be damaged, or the dtype too narrow")


class OutOfMemory(EngineError):
    """The device had no room for what a step needs beside weights and cache. Run less at once."""


class DeviceLost(EngineError):
    """The device is in a state that only a new process can leave. End the rank and start it again."""


class GroupLost(DeviceLost):
    """The ranks of a replica can no longer compute together. All of them end, and are started again."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the ranks have lost each other: {reason}")


class OutOfBlocks(EngineError):
    """More cache blocks were asked for than are free. Ask `can_allocate` first."""

    def __init__(self, wanted: int, free: int) -> None:
        super().__init__(f"{wanted} cache blocks wanted, {free} are free")
        self.wanted = wanted
        self.free = free


class NativeUnavailable(EngineError):
    """The native library cannot be built or loaded here. Install a C++ compiler; without it everything is slower."""


class GrammarRefused(EngineError):
    """An answer cannot be held to its grammar. Fails the job; its client has to ask for something simpler."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"The answer cannot be constrained like this: {reason}.")


class WrongResult(EngineError):
    """A way of computing a model gives something else than the model itself. Choose another way."""

    def __init__(self, architecture: str, path: str, reason: str) -> None:
        super().__init__(f"{architecture} by the path {path}: {reason}")
        self.architecture = architecture
        self.path = path
        self.reason = reason

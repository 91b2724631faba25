"""What can go wrong between messages and tokens."""

from pathlib import Path

from shared.messages import no_sight


class PromptError(Exception):
    """This prompt cannot be put to this model. Remedy: the client changes the parameter that `param` names."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class PromptTooLong(PromptError):
    """The prompt is longer than the context, by far. Remedy: the client shortens it."""

    def __init__(self, tokens: int, limit: int, param: str) -> None:
        super().__init__(f"The prompt has more than {tokens} tokens, and {limit} are the limit.", param)
        self.tokens = tokens  # at least
        self.limit = limit


class NoSight(PromptError):
    """The prompt has an image, at the place that `param` names, and the model takes none. Remedy: send text only."""

    def __init__(self, place: str) -> None:
        super().__init__(no_sight("this model", place), place)


class CheckpointError(Exception):
    """A model directory lacks what is needed to read and write its tokens. Remedy: complete the directory."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem

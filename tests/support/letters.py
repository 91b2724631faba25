"""A text side whose ids are the code points of their letters, so that tests can be read."""

from shared.messages import Constraint, Prompt
from worker.text.checkpoint import GenerationDefaults
from worker.text.stream import Piece


class LetterStream:
    """Every id settles its letter at once; the first stop string ends the stream."""

    def __init__(self, stop: list[str]) -> None:
        self.reasoning_tokens = 0
        self._stop = stop
        self._text = ""

    def feed(self, ids: list[int]) -> Piece:
        """The letters of these ids."""
        text = ""
        for count, id in enumerate(ids, 1):
            text += chr(id)
            self._text += chr(id)
            for stop in self._stop:
                if self._text.endswith(stop):
                    return Piece(
                        text[: -len(stop)] if len(stop) <= len(text) else "", stopped=stop, consumed=count, is_over=True
                    )
        return Piece(text, consumed=len(ids))

    def finish(self, reason: str) -> Piece:
        """Nothing was held back."""
        return Piece(finish=reason)


class Letters:
    """As `worker.text.ModelText`."""

    eos_ids = (0,)
    generation = GenerationDefaults()

    def encode(self, prompt: Prompt, *, limit: int | None = None, reserve: int = 1) -> list[int]:
        """One id a letter."""
        return [ord(letter) for letter in prompt.text or ""]

    def constrain(self, prompt: Prompt, constraint: Constraint | None, prompt_ids: list[int]) -> None:
        """Nothing is constrained here."""

    def stream(self, prompt: Prompt, *, stop: list[str], prompt_ids: list[int]) -> LetterStream:
        """A new stream."""
        return LetterStream(stop)

    def token_text(self, id: int) -> str:
        """The letter."""
        return chr(id)


def ids(text: str) -> list[int]:
    """The ids of a text."""
    return [ord(letter) for letter in text]

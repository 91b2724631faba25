"""Stop strings: the text ends in front of the first one, wherever the tokens' borders are."""

from collections.abc import Sequence

from worker.text.needles import Needles


class StopFinder:
    """Lets text through up to the first stop string; holds back what may turn out to be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._needles = Needles([stop for stop in stops if stop])
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the text that is settled, and the stop string if one was met; after that, feed no more."""
        text = self._held + text
        found = self._needles.find(text)
        if found:
            start, stop = found
            self._held = ""
            return text[:start], stop
        held = self._needles.held(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def flush(self) -> str:
        """Return what was held back: no more text comes."""
        text, self._held = self._held, ""
        return text

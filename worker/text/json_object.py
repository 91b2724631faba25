"""Following one JSON object through a text that arrives in pieces, to find where it ends."""

import json
import re

_TURNS = re.compile(r'["\\{}\[\]\x00-\x1f]')


class JsonObject:
    """Lets an object's text through, from its opening brace to the one that closes it.

    It does not judge what is between: that is the model's, and the client reads it. But a line break or another
    control character inside a string, which models do write and JSON forbids, comes out as its escape.
    """

    def __init__(self) -> None:
        self.is_done = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, text: str) -> tuple[str, str]:
        """Return what belongs to the object, and what follows it."""
        if self.is_done:
            return "", text
        parts: list[str] = []
        done = 0  # of `text`, in parts
        skip = -1  # a character that a backslash took
        if self._escaped and text:
            self._escaped, skip = False, 0
        for match in _TURNS.finditer(text):
            index, char = match.start(), match[0]
            if index == skip and char >= " ":
                continue
            if self._in_string:
                if char == "\\":
                    skip = index + 1
                elif char == '"':
                    self._in_string = False
                elif char < " ":
                    parts += (text[done:index], json.dumps(char)[1:-1])
                    done = index + 1
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.is_done = True
                    return "".join((*parts, text[done : index + 1])), text[index + 1 :]
        self._escaped = skip == len(text)
        return "".join((*parts, text[done:])), ""

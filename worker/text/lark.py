"""Writing grammars in the constraint library's dialect of Lark: rules, literals, marks. Pure."""

import json
from collections.abc import Callable
from typing import Any

Symbol = Callable[[str], str]
"""What stands in a grammar for a mark: its token, or its characters where it is no token."""


def literal(text: str) -> str:
    """A fixed string."""
    return json.dumps(text)


class Rules:
    """A grammar that is being written: rules by name, the same rule only once."""

    def __init__(self) -> None:
        self._rules: dict[str, str] = {}  # body by name
        self._names: dict[str, str] = {}  # name by body
        self._grammars: dict[str, str] = {}  # grammars of the client, by name

    def add(self, body: str, *, kind: str = "r", options: str = "") -> str:
        """Return the name of a rule with this body. A `kind` in capitals makes a terminal."""
        known = self._names.get(body + options)
        if known:
            return known
        name = f"{kind}{len(self._rules)}"
        self._rules[name] = f"{name}{options}: {body}"
        self._names[body + options] = name
        return name

    def text(self) -> str:
        """Any text at all, special tokens excepted."""
        return self.add(r"/(?s:.*)/", kind="T")

    def up_to(self, mark: str, symbol: str) -> str:
        """Any text up to a mark, the mark included."""
        if symbol != literal(mark):
            return self.add(f"{self.text()} {symbol}")
        return self.add(f"{self.text()} {symbol}", options="[lazy]", kind="r")

    def breaks(self) -> str:
        """A few line breaks, or none."""
        return self.add(r"/\n{0,4}/", kind="B")

    def json(self, schema: dict[str, Any]) -> str:
        """JSON text of this schema, as `worker.text.schema.prepare` returns it."""
        return self.add(f"%json {json.dumps(schema)}")

    def regex(self, pattern: str) -> str:
        """A regular expression in the library's notation, without slashes."""
        return self.add(f"/{pattern}/", kind="X")

    def foreign(self, grammar: str) -> str:
        """A grammar of the client's own, kept apart so that its names cannot meet ours."""
        name = f"client{len(self._grammars)}"
        self._grammars[name] = grammar
        return f"@{name}"

    def one_of(self, alternatives: list[str]) -> str:
        """A choice."""
        return alternatives[0] if len(alternatives) == 1 else f"({' | '.join(alternatives)})"

    def render(self, start: str) -> str:
        """The whole grammar, as the library takes it."""
        lark = "\n".join([f"start: {start}", *self._rules.values()])
        if not self._grammars:
            return lark
        grammars = [{"lark_grammar": lark}]
        grammars += [{"name": name, "lark_grammar": text} for name, text in self._grammars.items()]
        return json.dumps({"grammars": grammars})

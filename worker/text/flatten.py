"""A Lark grammar as one regular expression, where it is one. Pure.

A freeform tool takes text of a grammar, and most models write it inside a JSON string. The library can hold a JSON
string to an expression, escapes and all, but not to a grammar. Most grammars of tools need no recursion, so their rules
can be put into each other until one expression is left.
"""

import json
import re
from dataclasses import dataclass, field

MAX_CHARACTERS = 32 << 10  # of an expression
MAX_DEPTH = 32  # of brackets in a rule, and of rules in each other
_COMMON = {
    "CR": r"\r",
    "LF": r"\n",
    "NEWLINE": r"(?:\r?\n)+",
    "WS": r"[ \t\f\r\n]+",
    "WS_INLINE": r"[ \t]+",
    "DIGIT": r"[0-9]",
    "HEXDIGIT": r"[a-fA-F0-9]",
    "INT": r"[0-9]+",
    "SIGNED_INT": r"[+-]?[0-9]+",
    "DECIMAL": r"(?:[0-9]+\.[0-9]*|\.[0-9]+)",
    "FLOAT": r"(?:[0-9]+(?:\.[0-9]*)?[eE][+-]?[0-9]+|[0-9]+\.[0-9]*|\.[0-9]+)",
    "NUMBER": r"(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)",
    "SIGNED_NUMBER": r"[+-]?(?:[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)",
    "LCASE_LETTER": r"[a-z]",
    "UCASE_LETTER": r"[A-Z]",
    "LETTER": r"[a-zA-Z]",
    "WORD": r"[a-zA-Z]+",
    "CNAME": r"[a-zA-Z_][a-zA-Z0-9_]*",
    "ESCAPED_STRING": r'"(?:[^"\\\n]|\\.)*"',
}
_TOKEN = re.compile(
    r'(?P<text>"(?:\\.|[^"\\\n])*"i?)|(?P<comment>(?://|\#)[^\n]*)'
    r"|/(?P<pattern>(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n\[])+)/(?P<flags>[a-z]*)"
    r"|(?P<alias>->[ \t]*\w+)|(?P<word>%?\w+)|(?P<number>~[ \t]*\d+(?:[ \t]*\.\.[ \t]*\d+)?)"
    r"|(?P<count>\{[ \t]*\d*[ \t]*(?:,[ \t]*\d*[ \t]*)?\})|(?P<sign>\.\.|[:|()\[\]*+?.!,])"
    r"|(?P<break>\n\s*)|(?P<space>[ \t\r]+)"
)
_Token = tuple[str, str]


class NotRegular(ValueError):
    """The grammar is no single expression. Remedy: leave out what the message names."""


def flatten(grammar: str, start: str = "start") -> str:
    """The expression of all texts of `grammar`, without anchors. Raises `NotRegular`."""
    return _Flattener(_read(grammar)).rule(start, ())


@dataclass
class _Flattener:
    rules: dict[str, list[_Token]]
    known: dict[str, str] = field(default_factory=dict)  # rule → expression
    tokens: list[_Token] = field(default_factory=list)  # of the rule being read
    place: int = 0
    path: tuple[str, ...] = ()
    depth: int = 0  # of brackets

    def rule(self, name: str, path: tuple[str, ...]) -> str:
        if name in self.known:
            return self.known[name]
        if name in path:
            raise NotRegular(f"the rule {name!r} refers to itself")
        if len(path) > MAX_DEPTH:
            raise NotRegular(f"rules in each other deeper than {MAX_DEPTH}")
        if name not in self.rules:
            raise NotRegular(f"there is no rule {name!r}")
        inner = _Flattener(self.rules, self.known, self.rules[name], 0, (*path, name))
        text = inner.alternatives()
        if inner.place < len(inner.tokens):
            raise NotRegular(f"{inner.tokens[inner.place][1]!r} in the rule {name!r}")
        if len(text) > MAX_CHARACTERS:
            raise NotRegular(f"the rule {name!r} becomes an expression of more than {MAX_CHARACTERS} characters")
        self.known[name] = text
        return text

    def alternatives(self) -> str:
        texts = [self.sequence()]
        while self.peek() == ("sign", "|"):
            self.place += 1
            texts.append(self.sequence())
        return texts[0] if len(texts) == 1 else f"(?:{'|'.join(texts)})"

    def sequence(self) -> str:
        parts = []
        while (token := self.peek()) is not None and token not in (("sign", "|"), ("sign", ")"), ("sign", "]")):
            if token[0] == "alias":
                self.place += 1
                continue
            parts.append(self.repeated())
        return "".join(parts)

    def repeated(self) -> str:
        text = self.item()
        while (token := self.peek()) is not None:
            kind, value = token
            if kind == "sign" and value in "*+?":
                text = f"(?:{text}){value}"
            elif kind == "count":
                text = f"(?:{text}){re.sub(r'[ ]+', '', value)}"
            elif kind == "number":
                text = f"(?:{text}){{{re.sub(r'[~ ]', '', value).replace('..', ',')}}}"
            else:
                return text
            self.place += 1
        return text

    def item(self) -> str:
        kind, value = self.tokens[self.place]
        self.place += 1
        if kind == "sign" and value in "([":
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise NotRegular(f"brackets nested deeper than {MAX_DEPTH}")
            text = self.alternatives()
            self.depth -= 1
            if self.peek() != ("sign", ")" if value == "(" else "]"):
                raise NotRegular("a bracket without its end")
            self.place += 1
            return f"(?:{text})" if value == "(" else f"(?:{text})?"
        if kind == "text":
            if self.peek() == ("sign", ".."):
                kind, high = self.tokens[self.place + 1] if self.place + 1 < len(self.tokens) else ("", "")
                self.place += 2
                ends = (_decoded(value), _decoded(high) if kind == "text" else "")
                if len(ends[0]) != 1 or len(ends[1]) != 1:
                    raise NotRegular("'..' between other than two characters")
                return f"[{re.escape(ends[0])}-{re.escape(ends[1])}]"
            text = re.escape(_decoded(value.removesuffix("i") if value.endswith("i") else value))
            return f"(?i:{text})" if value.endswith("i") else text
        if kind == "pattern":
            return f"(?:{value})"
        if kind == "word" and not value.startswith("%"):
            return f"(?:{self.rule(value, self.path)})"
        raise NotRegular(f"{value!r}")

    def peek(self) -> _Token | None:
        return self.tokens[self.place] if self.place < len(self.tokens) else None


def _read(grammar: str) -> dict[str, list[_Token]]:
    """The rules by name."""
    rules: dict[str, list[_Token]] = {}
    for line in _lines(_tokens(grammar)):
        if line[0] == ("word", "%import"):
            _import(line[1:], rules)
            continue
        while line and line[0][1] in "?!":
            line = line[1:]
        name = line[0][1] if line else ""
        colon = next((place for place, token in enumerate(line[:4]) if token == ("sign", ":")), None)
        if colon is None or line[0][0] != "word" or name.startswith("%") or (colon > 1 and line[1] != ("sign", ".")):
            raise NotRegular(f"the line of {name[:40]!r}")
        if name in rules:
            raise NotRegular(f"a second rule {name!r}")
        rules[name] = line[colon + 1 :]
    return rules


def _import(line: list[_Token], rules: dict[str, list[_Token]]) -> None:
    words = [value for kind, value in line if kind == "word"]
    alias = next((value[2:].strip() for kind, value in line if kind == "alias"), "")
    if not words or words[0] != "common" or (alias and len(words) != 2):
        raise NotRegular("an %import of other than common")
    for name in words[1:]:
        if name not in _COMMON:
            raise NotRegular(f"%import common.{name[:40]}")
        rules[alias or name] = [("pattern", _COMMON[name])]


def _tokens(grammar: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while place < len(grammar):
        match = _TOKEN.match(grammar, place)
        if match is None:
            raise NotRegular(f"{grammar[place : place + 20]!r}")
        place = match.end()
        kind = match.lastgroup or ""
        if match["pattern"] is not None:
            flags = match["flags"]
            if set(flags) - set("isu"):
                raise NotRegular(f"the flags {flags!r}")
            known = "".join(sorted(set(flags) & set("is")))
            pattern = match["pattern"].replace("\\/", "/")
            tokens.append(("pattern", f"(?{known}:{pattern})" if known else pattern))
        elif kind not in ("space", "comment"):
            tokens.append((kind, match[0]))
    return tokens


def _lines(tokens: list[_Token]) -> list[list[_Token]]:
    """The rules and directives: one ends where the next begins, at the beginning of a line."""
    lines: list[list[_Token]] = []
    for place, token in enumerate(tokens):
        if token[0] == "break":
            continue
        is_first = place == 0 or tokens[place - 1][0] == "break"
        if is_first and (token[1] in "?!" or token[0] == "word") and _begins(tokens, place):
            lines.append([token])
        elif lines:
            lines[-1].append(token)
        else:
            raise NotRegular(f"{token[1][:40]!r} before the first rule")
    return lines


def _begins(tokens: list[_Token], place: int) -> bool:
    """Whether a rule or a directive begins here."""
    while place < len(tokens) and tokens[place][1] in "?!":
        place += 1
    ahead = [value for _, value in tokens[place + 1 : place + 4]]
    return place < len(tokens) and (
        tokens[place][1].startswith("%") or ahead[:1] == [":"] or (ahead[:1] == ["."] and ahead[2:] == [":"])
    )


def _decoded(text: str) -> str:
    try:
        return str(json.loads(text))
    except ValueError:
        raise NotRegular(f"the literal {text[:40]}") from None

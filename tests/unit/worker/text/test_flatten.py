"""Grammars as single expressions."""

import re

import pytest

from worker.text.flatten import MAX_CHARACTERS, NotRegular, flatten

PATCH = """\
start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk // comments
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
filename: /(.+)/
add_line: "+" /(.*)/ LF -> line
%import common.LF
"""


@pytest.mark.parametrize(
    ("grammar", "texts", "others"),
    [
        (PATCH, ["*** Begin Patch\n*** Add File: a\n+b\n+\n*** End Patch"], ["", "*** Begin Patch\n*** End Patch"]),
        ('start: "SELECT"i " "+ COL ("," COL)* ";"?\nCOL: /[a-z"]+/', ['select a,b"', "SELECT  c;"], ["select ", "x"]),
        ('start: a\n  | b\na: "1".."3"~2\n?b: [ "x" ] "y"', ["11", "32", "xy", "y"], ["1", "14", "x"]),
        ('start: A{2,3} B~1..2\nA: /q/i\nB.2: "."', ["qQ.", "qqq.."], ["q.", "qq", "qqx"]),
        ('start: /a\\/[b\\/]/ "c*"', ["a/bc*", "a//c*"], ["abc*", "a/bccc"]),
        ('start: N "-" WORD\n%import common.INT -> N\n%import common (WORD, LF)', ["12-ab"], ["-ab", "12-"]),
        ('start: "\\n\\"" | ', ['\n"', ""], ["x"]),
    ],
)
def test_it_matches_what_the_grammar_does(grammar: str, texts: list[str], others: list[str]) -> None:
    pattern = re.compile(flatten(grammar))
    assert [text for text in texts if not pattern.fullmatch(text)] == []
    assert [text for text in others if pattern.fullmatch(text)] == []


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ('start: "(" start ")" | ', "'start' refers to itself"),
        ('start: a\na: b\nb: "x" a?', "refers to itself"),
        ("start: r0\n" + "\n".join(f"r{place}: r{place + 1}" for place in range(99)), "rules in each other"),
        ("start: x", "no rule 'x'"),
        ('a: "x"', "no rule 'start'"),
        ('start: "a"\n%ignore " "', "%ignore"),
        ('start: "a" & /b/', "'&"),
        ('start: ("a"', "a bracket without its end"),
        ('start: "a")', "')'"),
        ('start: "a"\nstart: "b"', "a second rule"),
        ("start: *", "'*'"),
        ("start: /a/x", "the flags 'x'"),
        ("%import python.NAME\nstart: NAME", "an %import"),
        ("%import common.SQL_COMMENT\nstart: SQL_COMMENT", "SQL_COMMENT"),
        ('"a"', "before the first rule"),
        ('start: "a"..', ".."),
        ('start: "a" .. b', ".."),
        ("start: " + "(" * 3000 + '"a"' + ")" * 3000, "nested"),
    ],
)
def test_what_is_no_expression_is_named(grammar: str, says: str) -> None:
    with pytest.raises(NotRegular, match=re.escape(says)):
        flatten(grammar)


def test_what_grows_without_measure_is_refused() -> None:
    rules = [f"r{place}: {f'r{place - 1} r{place - 1}' if place else '/abcdefgh/'}" for place in range(20)]
    with pytest.raises(NotRegular, match=f"more than {MAX_CHARACTERS}"):
        flatten("\n".join(["start: r19", *rules]))

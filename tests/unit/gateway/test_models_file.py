"""The catalogue as a file: what it may hold, and where it says what is wrong."""

import re
import tomllib
from pathlib import Path

import pytest

from gateway.models_file import BOUNDS, KEYS, ORIGIN, parse
from gateway.models_loader import changes, read
from shared.errors import CatalogueError
from shared.records import ModelRecord

EXAMPLE = Path(__file__).parents[3] / "config" / "models.toml"
ONE = '[[model]]\nid = "a"\nsource = "org/a"\n'


def test_the_example_holds_every_key_with_its_default_and_explains_it() -> None:
    (entry,) = tomllib.loads(EXAMPLE.read_text())["model"]
    assert sorted(entry) == sorted(KEYS)
    plain = ModelRecord(id="", source="")
    assert {key: entry[key] for key in KEYS[2:]} == {key: getattr(plain, key) for key in KEYS[2:]}
    blocks = re.split(r"\n\n", EXAMPLE.read_text())
    unexplained = [block for block in blocks if re.match(r"\w+ = ", block.strip())]
    assert unexplained == []


def test_the_example_is_a_good_file() -> None:
    (record,) = read(EXAMPLE)
    assert (record.id, record.aliases, record.origin) == ("qwen3-8b", ["default"], ORIGIN)


def test_a_catalogue_of_nothing_but_a_comment_is_one_without_models() -> None:
    assert parse("# for now\n", "f") == []


def test_an_alias_is_part_of_its_models_record() -> None:
    records = parse(ONE + '[aliases]\nx = "a"\n"b:1" = "a"\n', "f")
    assert [record.aliases for record in records] == [["x", "b:1"]]


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("", 1, "empty"),
        (" \n\n", 1, "empty"),
        ("[[model]]\nid = 'a\n", 2, "not TOML"),
        ("x = 1\n" + ONE, 1, "no table 'x'"),
        ("[model]\nid = 'a'\n", 1, "one table"),
        ('[[model]]\nid = "a"\n', 1, "no source"),
        ('\n[[model]]\nsource = "a/b"\n', 2, "no id"),
        (ONE + "pined = true\n", 4, "no key 'pined'"),
        (ONE + "pinned = 1\n", 4, "pinned"),
        (ONE + "devices = 0\n", 4, "out of bounds"),
        (ONE + "keep_alive_s = nan\n", 4, "out of bounds"),
        (ONE + 'dtype = "fp8"\n', 4, "'fp8' is unknown"),
        (ONE + "min_replicas = 3\n", 4, "more than max_replicas"),
        (ONE + "workers = 'w'\n", 4, "workers"),
        (ONE + "[model.cost]\ninptu = 1.0\n", 4, "no 'inptu'"),
        (ONE + "sampling = { top_k = true }\n", 4, "top_k = True"),
        (ONE + "options = { spekulate = true }\n", 4, "option spekulate"),
        (ONE + "[model.options]\nspeculate = true\ncache_token = 5\n", 6, "option cache_token"),
        (ONE + 'backend = "synthetic"\noptions = { speculate = true }\n', 5, "option speculate"),
        ('[[model]]\nid = "a b"\nsource = "org/a"\n', 2, "no model id"),
        ('[[model]]\nid = "a"\nsource = "nowhere"\n', 3, "no source"),
        (ONE + ONE, 5, "twice"),
        (ONE + "[aliases]\nx = 'b'\n", 5, "no model"),
        (ONE + "[aliases]\na = 'a'\n", 5, "of its own"),
        (ONE + '[[model]]\nid = "b"\nsource = "org/b"\ndevices = 99\n', 7, "out of bounds"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(CatalogueError, match=re.escape(problem)) as error:
        parse(text, "models.toml")
    assert error.value.line == line
    assert str(error.value).startswith(f"models.toml, line {line}: ")
    assert error.value.remedy


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(CatalogueError, match="the nearest is 'memory_floor_bytes'"):
        parse(ONE + "memory_floor = 1\n", "f")


def test_every_bounded_key_refuses_what_lies_outside() -> None:
    for key, (lowest, highest) in BOUNDS.items():
        for value in (lowest - 1, highest + 1):
            with pytest.raises(CatalogueError):
                parse(f"{ONE}{key} = {int(value)}\n", "f")


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="No such file"):
        read(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"\n# \xe4\n")
    with pytest.raises(CatalogueError, match="line 2: this is not UTF-8"):
        read(tmp_path / "latin.toml")


def test_only_what_differs_is_written_and_only_the_files_own_entries_go() -> None:
    records = parse(ONE + '[[model]]\nid = "b"\nsource = "org/b"\n', "f")
    same = parse(ONE, "f")[0]
    same.created_s = 5.0
    known = {
        "a": same,
        "gone": ModelRecord(id="gone", source="org/g", origin=ORIGIN),
        "mine": ModelRecord(id="mine", source="org/m"),
    }
    todo = dict(changes(records, known, now_s=9.0))
    assert set(todo) == {"b", "gone"}
    assert todo["gone"] is None
    assert todo["b"] is not None and todo["b"].created_s == 9.0


def test_a_changed_entry_keeps_its_age() -> None:
    before = ModelRecord(id="a", source="org/old", origin=ORIGIN, created_s=5.0)
    ((_, record),) = changes(parse(ONE, "f"), {"a": before}, now_s=9.0)
    assert record is not None
    assert (record.source, record.created_s) == ("org/a", 5.0)

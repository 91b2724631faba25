"""The catalogue as a file: `models.toml` to records, whole or not at all.

Each `[[model]]` has the keys of a `ModelRecord`, `[aliases]` gives further names: ``name = "id"``. The file is taken as
a whole: the first thing that is wrong in it is an error with its line and its remedy, and nothing is changed.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import msgspec

from shared import sources
from shared.errors import CatalogueError
from shared.options import check as check_options
from shared.records import ModelRecord

ORIGIN = "models.toml"  # marks the records that come from the file
MAX_MODELS = 1000

_INTERNAL = ("v", "created_s", "origin", "aliases")
KEYS = tuple(one for one in ModelRecord.__struct_fields__ if one not in _INTERNAL)
_NAME = re.compile(r"[\w.][\w./:@+-]{0,200}")
_TOML_LINE = re.compile(r"\(at line (\d+)")
_FIELD = re.compile(r" - at `\$\.?(\w*)")

# Lowest and highest value; what a key outside of them means nobody can say.
BOUNDS: dict[str, tuple[float, float]] = {
    "context_limit": (0, 2**24),
    "max_slots": (0, 4096),
    "devices": (1, 64),
    "memory_floor_bytes": (0, 2**50),
    "residency": (0, 1000),
    "priority": (-1000, 1000),
    "keep_alive_s": (0, 365 * 86400),
    "min_replicas": (0, 64),
    "max_replicas": (1, 64),
}
CHOICES: dict[str, tuple[str, ...]] = {
    "dtype": ("auto", "float32", "bfloat16", "float16"),
    "quantization": ("", "int8", "int4", "fp8"),
    "task": ("generate", "embed"),
    "backend": ("torch", "synthetic"),
}
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
CAPABILITIES = ("tools", "reasoning", "vision")
COST = ("input", "output", "cached_input")


def parse(text: str, path: str) -> list[ModelRecord]:
    """The records of a file, in its order, aliases joined in. Raises CatalogueError."""
    return _Reader(text, path).records()


class _Reader:
    """One file being read; knows the line of everything it complains of."""

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._lines = text.splitlines()
        try:
            self._tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            found = _TOML_LINE.search(str(error))
            line = int(found[1]) if found else len(self._lines)
            raise CatalogueError(path, line, f"this is not TOML: {error}", "correct the line") from error

    def records(self) -> list[ModelRecord]:
        """See `parse`."""
        for key in self._tables:
            if key not in ("model", "aliases"):
                raise self._bad(self._line(key), f"there is no table {key!r}", "use [[model]] and [aliases]")
        if not any(line.strip() for line in self._lines):
            raise self._bad(
                1, "the file is empty", "write [[model]]; a catalogue without models has at least a comment"
            )
        entries = self._tables.get("model", [])
        if not isinstance(entries, list):
            raise self._bad(self._line("model"), "[model] is one table", "write [[model]], once for each model")
        if len(entries) > MAX_MODELS:
            raise self._bad(1, f"{len(entries)} models are too many", f"keep to {MAX_MODELS}")
        records: dict[str, ModelRecord] = {}
        for index, entry in enumerate(entries):
            record = self._record(index, entry)
            if record.id in records:
                raise self._bad(self._line("id", index), f"{record.id!r} is there twice", "give each model one entry")
            records[record.id] = record
        self._add_aliases(records)
        return list(records.values())

    def _record(self, index: int, entry: Mapping[str, Any]) -> ModelRecord:
        for key in entry:
            if key not in KEYS:
                near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.0)[0]
                raise self._bad(self._line(key, index), f"a model has no key {key!r}", f"the nearest is {near!r}")
        for key in ("id", "source"):
            if not entry.get(key):
                raise self._bad(self._line("", index), f"the model has no {key}", f'add {key} = "…"')
        try:
            record = msgspec.convert({**entry, "origin": ORIGIN}, ModelRecord)
        except msgspec.ValidationError as error:
            found = _FIELD.search(str(error))
            key = found[1] if found else ""
            problem = str(error).partition(" - at ")[0]
            raise self._bad(self._line(key, index), f"{key}: {problem[:1].lower()}{problem[1:]}", "mend it") from error
        self._check(index, record)
        return record

    def _check(self, index: int, record: ModelRecord) -> None:
        def refuse(key: str, problem: str, remedy: str) -> None:
            raise self._bad(self._line(key, index), f"{key} = {getattr(record, key)!r} {problem}", remedy)

        if not _NAME.fullmatch(record.id):
            refuse("id", "is no model id", "use letters, digits and . _ / : @ + -")
        if not sources.PATTERN.fullmatch(record.source):
            refuse(
                "source", "is no source", 'name a hub repository "org/name", a mirror\'s "scheme:org/name" or a path'
            )
        for key, choices in CHOICES.items():
            if getattr(record, key) not in choices:
                refuse(key, "is unknown", f"choose one of {', '.join(map(repr, choices))}")
        for key, (lowest, highest) in BOUNDS.items():
            if not lowest <= getattr(record, key) <= highest:
                refuse(key, "is out of bounds", f"stay between {lowest:g} and {highest:g}")
        if record.min_replicas > record.max_replicas:
            refuse("min_replicas", "is more than max_replicas", f"raise max_replicas from {record.max_replicas}")
        if wrong := check_options(record.options, record.backend, record.task):
            line = self._line(wrong.name, index)
            line = line if line != self._line("", index) else self._line("options", index)
            raise self._bad(line, f"the option {wrong.name}: {wrong.problem}", wrong.remedy)
        for key, allowed in (("sampling", SAMPLING), ("capabilities", CAPABILITIES), ("cost", COST)):
            for name, value in getattr(record, key).items():
                if name not in allowed:
                    refuse(key, f"has no {name!r}", f"known are {', '.join(allowed)}")
                if key != "capabilities" and (isinstance(value, bool) or not isinstance(value, int | float)):
                    refuse(key, f"holds {name} = {value!r}", "give a number")

    def _add_aliases(self, records: dict[str, ModelRecord]) -> None:
        aliases = self._tables.get("aliases", {})
        if not isinstance(aliases, dict):
            raise self._bad(self._line("aliases"), "aliases is no table", 'write [aliases] and name = "id" below it')
        for alias, model in aliases.items():
            line = self._line(alias)
            if not _NAME.fullmatch(alias):
                raise self._bad(line, f"{alias!r} is no alias", "use letters, digits and . _ / : @ + -")
            if alias in records:
                raise self._bad(line, f"{alias!r} is a model of its own", "choose another alias")
            if not isinstance(model, str) or model not in records:
                near = difflib.get_close_matches(str(model), records, n=1, cutoff=0.0)
                remedy = f"name a model of this file, such as {near[0]!r}" if near else "add the model first"
                raise self._bad(line, f"the alias {alias!r} stands for {model!r}, which is no model", remedy)
            records[model].aliases = [*records[model].aliases, alias]

    def _bad(self, line: int, problem: str, remedy: str) -> CatalogueError:
        return CatalogueError(self._path, line, problem, remedy)

    def _line(self, key: str, model: int | None = None) -> int:
        """Where a key stands: in the `model`-th `[[model]]` and its subtables, or anywhere. Else where that begins."""
        pattern = re.compile(rf"""\s*(?:\[+\s*(?:model\s*\.\s*)?)?["']?{re.escape(key)}["']?\s*(?:=|\.|\])""")
        start = current = -1
        for number, line in enumerate(self._lines, 1):
            if re.match(r"\s*\[\[\s*model\s*\]\]", line):
                current += 1
                if current == model:
                    start = number
            if (model is None or current == model) and key and pattern.match(line):
                return number
        return max(start, 1)

"""Settings of the system that this one replaces, translated: `cortex.toml`, its `models.toml`, and `neuron.toml`.

Pure: texts in, texts and notes out. Everything that has no counterpart is named in a note, nothing is dropped in
silence.
"""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from shared.errors import SettingsError
from shared.names import check_token
from shared.sources import is_scheme

PINNED_CLASS = 1000  # what a model pinned to hosts had unless its entry said otherwise
USUAL_CLASS = 100
MIB = 1 << 20

_ENTRIES = ("models", "model", "profiles", "profile")
_QUANT = {"q8_0": "int8", "q8": "int8", "q6k": "int8", "q6_k": "int8"}
_CAPABILITIES = {
    "vision": "vision",
    "image": "vision",
    "tools": "tools",
    "tool_call": "tools",
    "tool_calls": "tools",
    "reasoning": "reasoning",
    "thinking": "reasoning",
}
_NO_COUNTERPART = {
    "entitlements": "keys, caps and budgets are not part of the gateway yet; put it behind a proxy that checks keys",
    "upstream": "there is no upstream authority for keys and budgets",
    "harnesses": "a worker has one engine; its options are per model",
    "port": "workers listen nowhere: they only connect to the nats-server",
}
# Of a worker's [harness.candle]; tables with what they were for.
_NO_COUNTERPART_OF_WORKERS = {
    "hf_cache": "set HF_HUB_CACHE in the worker's environment",
    "default_source": "a source without a scheme is of the hub that HF_ENDPOINT names",
    "prefix_cache": "prefixes share the KV cache, and are dropped when it is full",
    "context_limit": "it follows from the model and the memory that it is granted; an entry's context_limit lowers it",
    "admission": "jobs wait in the queue; how many run follows from slots and the cache",
    "image": "there is no image generation",
}


@dataclass
class Imported:
    """A translation: the tables of the three files, and what had no counterpart."""

    gateway: dict[str, Any] = field(default_factory=dict)
    worker: dict[str, Any] = field(default_factory=dict)
    models: list[dict[str, Any]] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def gateway_toml(self) -> str:
        """The text of gateway.toml."""
        return _settings_toml(self.gateway)

    def worker_toml(self) -> str:
        """The text of worker.toml."""
        return _settings_toml(self.worker)

    def models_toml(self) -> str:
        """The text of models.toml."""
        blocks = ["\n".join(["[[model]]", *_lines(entry)]) for entry in self.models]
        if self.aliases:
            blocks.append("\n".join(["[aliases]", *_lines(self.aliases)]))
        return "\n\n".join(blocks) + "\n"


def translate(files: Mapping[str, str]) -> Imported:
    """Translate files, by name. Raises SettingsError for one that is not TOML."""
    found = Imported()
    for name, text in files.items():
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{name} is not valid TOML: {error}") from error
        try:
            _translate_file(found, name, tables)
        except (AttributeError, TypeError, ValueError) as error:  # a table where a text should be, and the like
            raise SettingsError(f"{name} is not such a file as the old system read: {error}") from error
    return found


def _translate_file(found: Imported, name: str, tables: Mapping[str, Any]) -> None:
    for key, value in tables.items():
        if key == "gateway" and isinstance(value, dict):
            _take(
                found,
                f"{name}: [gateway]",
                value,
                found.gateway,
                {"listen": "listen", "metrics_listen": "metrics_listen"},
            )
        elif key == "eviction" and isinstance(value, dict):
            wanted = {"strategy": "strategy", "defrag_after_cycles": "defrag_after_cycles"}
            _take(found, f"{name}: [eviction]", value, found.gateway.setdefault("eviction", {}), wanted)
            if value.get("defrag_after_cycles"):
                found.notes.append(f"{name}: defrag_after_cycles is kept and has no effect: an unload ends the process")
        elif key == "models_config":
            found.gateway["models"] = str(value)
            found.notes.append(
                f"{name}: models_config: {value} is in the old form; import it too, and name the new file"
            )
        elif key in ("neurons", "nodes") and isinstance(value, list):
            for host in value:
                found.notes += _notes_of_host(name, host) if isinstance(host, dict) else []
        elif key == "harness" and isinstance(value, dict):
            _translate_harness(found, name, value)
        elif key == "default_models" and isinstance(value, list):
            found.notes += [_note_of_default(name, one) for one in value]
        elif key in _ENTRIES and isinstance(value, list):
            found.models += [_model(found, name, entry) for entry in value if isinstance(entry, dict)]
        elif key in _ENTRIES and isinstance(value, dict):  # profiles by name
            entries = [{"id": model, **entry} for model, entry in value.items() if isinstance(entry, dict)]
            found.models += [_model(found, name, entry) for entry in entries]
        elif key == "aliases" and isinstance(value, dict):
            found.aliases |= {str(alias): str(model) for alias, model in value.items()}
        else:
            found.notes.append(f"{name}: {key}: {_NO_COUNTERPART.get(key, 'there is no counterpart')}")


def _take(found: Imported, where: str, table: Mapping[str, Any], into: dict[str, Any], keys: Mapping[str, str]) -> None:
    for key, value in table.items():
        if key in keys:
            into[keys[key]] = value
        elif key != "auth_env":  # which has a note of its own
            found.notes.append(f"{where}: {key}: there is no counterpart")


def _notes_of_host(name: str, host: Mapping[str, Any]) -> list[str]:
    own = host.get("name", "?")
    where = f" (it was at {host['endpoint']})" if "endpoint" in host else ""
    rest = [key for key in host if key not in ("name", "endpoint")]
    first = f"{name}: host {own!r}{where}: gateways keep no list of hosts; start `plexus-worker --name {own}` there"
    try:
        check_token(str(own), "the name")
    except ValueError as error:
        first = f"{name}: host {own!r}{where}: no worker can be called so ({error}); start `plexus-worker` there"
    return [first, *(f"{name}: host {own!r}: {key}: workers find out themselves, or there is none" for key in rest)]


def _note_of_default(name: str, model: Any) -> str:
    own = model.get("model_id", model.get("id", "?")) if isinstance(model, dict) else model
    return f"{name}: default_models: {own!r}: give it min_replicas = 1 and workers = [this worker] in models.toml"


def _translate_harness(found: Imported, name: str, harnesses: Mapping[str, Any]) -> None:
    """Mirrors and seats of a worker; everything else is named."""
    for harness, table in harnesses.items():
        where = f"{name}: [harness.{harness}]"
        for key, value in table.items():
            if key == "sources":
                for scheme, source in value.items():
                    _translate_mirror(found, f"{where}: sources.{scheme}", scheme, source)
                continue
            inner = value if isinstance(value, dict) else {}
            if key == "admission" and "max_in_flight" in inner:
                found.worker["slots"] = max(1, int(inner["max_in_flight"]))
                found.notes.append(f"{where}: admission.max_in_flight became slots; 32 is usual here")
            reason = _NO_COUNTERPART_OF_WORKERS.get(key, "there is no counterpart")
            names = [f"{key}.{one}" for one in inner if one != "max_in_flight"] if inner else [key]
            found.notes += [f"{where}: {one}: {reason}" for one in names]


def _translate_mirror(found: Imported, where: str, scheme: str, source: Mapping[str, Any]) -> None:
    if not is_scheme(scheme):
        found.notes.append(f"{where}: the usual hub is set up by HF_ENDPOINT, HF_TOKEN and HF_HUB_CACHE")
        return
    made = found.worker.setdefault("sources", {}).setdefault(scheme, {})
    _take(found, where, source, made, {"endpoint": "endpoint", "cache_dir": "cache_dir"})
    if "auth_env" in source:
        found.notes.append(f"{where}: auth_env: put the token into a file and name it with token_file")


def _model(found: Imported, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One entry of the catalogue. Raises ValueError that names it."""
    try:
        return _translate_model(found, name, entry)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model {entry.get('id', '?')!r}: {error}") from error


def _integer(left: dict[str, Any], key: str, usual: int = 0) -> int:
    """Taken out of the entry. Raises ValueError."""
    value = left.pop(key, usual)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} = {value!r} is no whole number")
    return value


def _translate_model(found: Imported, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is not used up is noted."""
    left = dict(entry)
    model = str(left.pop("id", ""))
    note = f"{name}: model {model!r}"
    scheme = left.pop("source", "")
    made: dict[str, Any] = {"id": model, "source": f"{scheme}:{model}" if scheme and scheme != "huggingface" else model}
    if scheme and scheme != "huggingface":
        found.notes.append(
            f"{note}: the mirror {scheme!r} must be defined in the workers' settings, [sources.{scheme}]"
        )
    quant = str(left.pop("quant", "")).lower()
    if quant:
        made["quantization"] = _QUANT.get(quant, "int4")
        found.notes.append(
            f"{note}: quant {quant!r} became {made['quantization']!r}, made from the unquantised weights"
        )
    made |= _renamed(left, {"min_devices": "devices"})
    if "min_device_vram_mb" in left:
        made["memory_floor_bytes"] = _integer(left, "min_device_vram_mb") * MIB
    if "vram_mb" in left:
        left.pop("vram_mb")
        found.notes.append(f"{note}: vram_mb: memory is estimated from the weights' headers and measured, not declared")
    hosts = left.pop("pinned_on", [])
    if hosts:
        made["workers"] = [hosts] if isinstance(hosts, str) else list(hosts)
    wanted = _integer(left, "residency_priority", PINNED_CLASS if hosts else USUAL_CLASS)
    made["residency"] = min(max(wanted, 0), 1000)
    if made["residency"] != wanted:
        found.notes.append(f"{note}: residency_priority {wanted} became {made['residency']}")
    _add_details(found, note, made, left)
    return made


def _add_details(found: Imported, note: str, made: dict[str, Any], left: dict[str, Any]) -> None:
    """Limits, cost and capabilities; then whatever nobody knows."""
    if left.pop("harness", "candle") not in ("candle", "torch"):
        found.notes.append(f"{note}: harness: there is one engine")
    limit = left.pop("limit", {})
    if limit.get("context"):
        made["context_limit"] = _integer(dict(limit), "context")
    found.notes += [f"{note}: limit.{key}: follows from the context" for key in limit if key != "context"]
    cost = left.pop("cost", {})
    priced = _renamed(cost, {"input": "input", "output": "output", "cache_read": "cached_input"})
    if priced:
        made["cost"] = priced
    found.notes += [f"{note}: cost.{key}: there is no counterpart" for key in cost]
    named = left.pop("capabilities", [])
    known = {_CAPABILITIES[one]: True for one in named if one in _CAPABILITIES}
    if known:
        made["capabilities"] = known
    found.notes += [f"{note}: capability {one!r}: there is no counterpart" for one in named if one not in _CAPABILITIES]
    found.notes += [f"{note}: {key}: there is no counterpart" for key in left]


def _renamed(table: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The values of these keys under their new names; taken out of the table."""
    return {new: table.pop(old) for old, new in names.items() if old in table}


def _settings_toml(settings: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in settings.items() if not isinstance(value, dict)}
    lines = _lines(plain)
    for name, table in settings.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{_key(key)} = {_value(value)}" for key, value in table.items()]


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)

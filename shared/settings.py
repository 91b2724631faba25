"""Settings of every process: defaults here, then a TOML file, then the environment, then the command line.

This is the only module that reads the environment. Names there start with the process: `PLEXUS_GATEWAY__LISTEN`,
`PLEXUS_WORKER__BUS__URL`; two underscores step into a table. A key that nobody knows is an error that names the
nearest known one.
"""

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.sources import PydanticBaseSettingsSource

from shared import sources
from shared.errors import SettingsError

LogLevel = Literal["debug", "info", "warning", "error"]


class BusSettings(BaseModel):
    """How to reach the nats-server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = "nats://127.0.0.1:4222"  # several servers: separated by commas
    user: str = ""
    password: str = Field(default="", repr=False)
    nkey_seed_file: str = ""  # instead of user and password
    tls_ca: str = ""  # certificate authority of the server, a PEM file; empty: the system's, for tls:// urls
    connect_timeout_s: float = Field(default=5.0, gt=0)
    inbox_prefix: str = ""  # where answers come in; empty: _INBOX_<user>, which that user may subscribe to

    @field_validator("user", "inbox_prefix")
    @classmethod
    def _is_subject_part(cls, value: str) -> str:
        if value and not all(c.isalnum() or c in "_-." for c in value):
            raise ValueError("may hold only letters, digits, '_', '-' and '.'")
        return value


class _ProcessSettings(BaseSettings):
    """Base of what one process reads. Constructing one reads nothing from outside; `load` does."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_nested_delimiter="__", env_ignore_empty=True, validate_default=False
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class PlacementSettings(BaseModel):
    """When models are loaded, and how many copies of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    starvation_bound_s: float = Field(default=60.0, gt=0)  # a model waited for so long may displace a busy one
    keep_alive_s: float = Field(default=0.0, ge=0)  # of models whose entry says nothing; 0: until displaced
    scale_up_after_s: float = Field(default=5.0, ge=0)  # jobs wait so long beside a ready replica: one more
    scale_down_after_s: float = Field(default=60.0, ge=0)  # a replica above the wanted number idle so long: one less


class EvictionSettings(BaseModel):
    """Which models give way to others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: Literal["lru", "priority"] = "lru"
    min_residency_s: float = Field(default=5.0, ge=0)  # a model serves so long before it may be displaced
    defrag_after_cycles: int = Field(default=0, ge=0)  # accepted and without effect: an unload ends the process


class GatewaySettings(_ProcessSettings):
    """A gateway."""

    model_config = SettingsConfigDict(env_prefix="PLEXUS_GATEWAY__")

    listen: str = "127.0.0.1:31313"
    metrics_listen: str = "127.0.0.1:31314"
    bus: BusSettings = BusSettings()
    max_body_bytes: int = Field(default=32_000_000, gt=0)  # a job adds some; see max_payload_bytes of the broker
    accept_wait_s: float = Field(default=3.0, ge=0)  # how long HTTP headers are held back
    keepalive_s: float = Field(default=10.0, gt=0)  # between two signs of life on a waiting stream
    job_deadline_s: float = Field(default=1800, gt=0)
    max_attempts: int = Field(default=4, ge=1)
    max_queue_per_model: int = Field(default=512, ge=1)
    models: str = ""  # path of the catalogue's file, models.toml; empty: what operators put into the plan
    placement: PlacementSettings = PlacementSettings()
    eviction: EvictionSettings = EvictionSettings()
    log_level: LogLevel = "info"


class SourceSettings(BaseModel):
    """A hub beside the usual one, for models whose source names it: ``scheme:org/name``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(pattern=r"https?://.+")  # speaks what a Hugging Face hub speaks
    token: str = Field(default="", repr=False)
    token_file: str = ""  # in place of `token`
    cache_dir: str = ""  # empty: a folder of its own in the cache of the usual hub


class WorkerSettings(_ProcessSettings):
    """The agent of a host."""

    model_config = SettingsConfigDict(env_prefix="PLEXUS_WORKER__")

    name: str = ""  # empty: as kept in state_dir, else made from the host's name
    state_dir: Path = Field(default=Path("~/.local/state/plexus"), validate_default=True)
    bus: BusSettings = BusSettings()
    cores: int = Field(default=0, ge=0)  # for replicas; 0: all
    device: str = "auto"  # auto, cpu, cuda, cuda:0 …
    cpu_devices: int = Field(default=1, ge=1, le=64)  # that the CPU counts as: cpu:0, cpu:1 …, each with a share
    memory_fraction: float = Field(default=0.6, gt=0, le=1)  # of a device's memory, for replicas
    memory_bytes: int = Field(default=0, ge=0)  # instead of the fraction; 0: not set
    slots: int = Field(default=32, ge=1)  # jobs a replica takes at once
    prefill_tokens: int = Field(default=512, ge=1)  # token budget of a step
    drain_grace_s: float = Field(default=30.0, ge=0)
    standby: bool = True  # one spare replica with everything imported, so that a load begins at once
    enforce_memory: bool = False  # a rank on the CPU that takes more than it was granted fails
    log_level: LogLevel = "info"
    sources: dict[str, SourceSettings] = {}  # mirrors, by the scheme that sources name them with

    @field_validator("sources")
    @classmethod
    def _are_schemes(cls, value: dict[str, SourceSettings]) -> dict[str, SourceSettings]:
        for name in value:
            if not sources.is_scheme(name):
                raise ValueError(f"{name!r} is no scheme: use small letters, digits, '_' and '-', and not huggingface")
        return value

    @field_validator("state_dir")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()


class OperatorSettings(_ProcessSettings):
    """The operator's command line, for fleets other than the embedded one of this host."""

    model_config = SettingsConfigDict(env_prefix="PLEXUS_OPERATOR__")

    bus: BusSettings = BusSettings(url="")  # without a url: the embedded fleet


class BrokerSettings(_ProcessSettings):
    """A nats-server made for this project: what `shared.broker.render` writes into its configuration.

    A password like ``$NAME`` (capitals) is written as a reference to that variable of the server's environment.
    """

    model_config = SettingsConfigDict(env_prefix="PLEXUS_BROKER__")

    name: str = "plexus"
    host: str = "127.0.0.1"
    port: int = Field(default=4222, ge=-1, le=65535)  # -1: any free one
    monitor: str = ""  # host:port of the server's own HTTP pages; empty: none
    store_dir: str = "/var/lib/plexus/nats"
    run_dir: str = ""  # pid and ports files; empty: none
    log_file: str = ""  # empty: stderr
    max_memory_bytes: int = Field(default=256 << 20, gt=0)
    max_file_bytes: int = Field(default=8 << 30, gt=0)
    max_payload_bytes: int = Field(default=33_000_000, gt=0, le=64 << 20)  # JetStream files take 32 MiB at most
    gateway_password: str = Field(default="$GATEWAY_PASSWORD", min_length=1, repr=False)
    operator_password: str = Field(default="$OPERATOR_PASSWORD", min_length=1, repr=False)
    system_password: str = Field(default="$SYSTEM_PASSWORD", min_length=1, repr=False)
    # Of the user `worker` that all hosts share; empty: no such user.
    worker_password: str = Field(default="$WORKER_PASSWORD", repr=False)
    workers: dict[str, str] = Field(default={}, repr=False)  # a user for each named host: name → password
    tls_cert: str = ""  # PEM files; both needed when hosts connect over a network that is not trusted
    tls_key: str = ""


Settings = TypeVar("Settings", bound=_ProcessSettings)


def load(cls: type[Settings], path: Path | None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of `cls`: its defaults, under the TOML file at `path`, under the environment, under `overrides`.

    Overrides that are None, or tables that hold only such, count as not given. Raises SettingsError.
    """
    layers: dict[str, Mapping[str, Any]] = {}
    if path is not None:
        layers[str(path)] = _read(path)
    layers["the environment"] = _environment(cls)
    layers["the command line"] = _given(overrides or {})
    merged: dict[str, Any] = {}
    for source, layer in layers.items():
        _refuse_unknown(cls, layer, source)
        merged = _merge(merged, layer)
    try:
        return cls(**merged)
    except ValidationError as error:
        first = error.errors()[0]
        raise SettingsError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def state_home() -> Path:
    """Where this user's programs keep their state: $XDG_STATE_HOME, else ~/.local/state."""
    path = Path(os.environ.get("XDG_STATE_HOME", ""))
    return path if path.is_absolute() else Path.home() / ".local" / "state"


def log_format() -> Literal["line", "json"]:
    """How log lines are written: `PLEXUS_LOG=json` asks for JSON."""
    return "json" if os.environ.get("PLEXUS_LOG", "").lower() == "json" else "line"


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error


def _environment(cls: type[_ProcessSettings]) -> dict[str, Any]:
    prefix = cls.model_config.get("env_prefix", "")
    for name in os.environ:
        if name.upper().startswith(prefix):
            parts = name[len(prefix) :].lower().split("__")
            nested: Any = {}
            for part in reversed(parts):
                nested = {part: nested}
            _refuse_unknown(cls, nested, f"the environment ({name})")
    return EnvSettingsSource(cls)()


def _given(overrides: Mapping[str, Any]) -> dict[str, Any]:
    given = {}
    for key, value in overrides.items():
        if isinstance(value, Mapping):
            value = _given(value)
            if not value:
                continue
        if value is not None:
            given[key] = value
    return given


def _refuse_unknown(model: type[BaseModel], layer: Mapping[str, Any], source: str, where: str = "") -> None:
    known = model.model_fields
    for key, value in layer.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            raise SettingsError(f"{source}: there is no setting {where}{key}; the nearest is {where}{near[0]}")
        inner = known[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            _refuse_unknown(inner, value, source, f"{where}{key}.")
        named = get_args(inner)[1:]  # tables by name: dict[str, …]
        if named and isinstance(named[0], type) and issubclass(named[0], BaseModel) and isinstance(value, Mapping):
            for name, table in value.items():
                if isinstance(table, Mapping):
                    _refuse_unknown(named[0], table, source, f"{where}{key}.{name}.")


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merge(merged[key], value)
        else:
            merged[key] = value
    return merged

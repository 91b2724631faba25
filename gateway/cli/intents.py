"""The operator's hand on the plan bucket: entries of the catalogue, and what is wanted of them."""

import getpass
import importlib.util
import socket
import time
from pathlib import Path

import msgspec

from gateway.cli.errors import CliError, UnknownModel
from shared import names, sources
from shared.bus import Bus
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.records import IntentRecord, ModelRecord

BY_UP = "plexus up"
DEMO = "plexus-demo"


def demo_model() -> ModelRecord:
    """The small model that comes with the worker. Raises CliError where it is not installed."""
    spec = importlib.util.find_spec("worker")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder).absolute() / "demo" / "model"
        if (path / "config.json").exists():
            # So small a model knows best what comes first to its mind.
            return ModelRecord(id=DEMO, source=str(path), sampling={"temperature": 0.0}, created_s=time.time())
    raise CliError("the demo model is not installed here. Name a model with --model.")


def named_model(text: str) -> ModelRecord:
    """The model that an argument means: a directory with config.json (its name becomes the id), or a repository, with
    the scheme of a mirror or without.

    Raises UnknownModel for anything else.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").exists():
            raise CliError(f"{path} holds no model: there is no config.json in it.")
        path = path.resolve()
        return ModelRecord(id=path.name, source=str(path), created_s=time.time())
    if text == DEMO:
        return demo_model()
    if sources.PATTERN.fullmatch(text) and not text.startswith((".", "/", "~")):
        return ModelRecord(id=text, source=text, created_s=time.time())
    raise UnknownModel(text, [DEMO])


def operator_name() -> str:
    """Who gives the order, for the record."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in some containers
        user = "operator"
    return f"{user}@{socket.gethostname()}"


async def declare(bus: Bus, models: list[ModelRecord], replicas: int) -> None:
    """Make these the models of an embedded fleet; those of an earlier `plexus up` leave the catalogue.

    What operators added with `plexus load` stays.
    """
    plan = Bucket(bus, names.PLAN)
    async with Fleet(bus) as fleet:
        known = dict(fleet.models)
        keep = {model.id for model in models}
        for model, intent in list(fleet.intents.items()):
            if intent.by == BY_UP and model not in keep:
                await plan.delete(names.intent_key(model))
                await plan.delete(names.model_key(model))
    for record in models:
        before = known.get(record.id)
        # Workers follow every change of an entry: one that differs in its age alone would make them load again.
        if before is None or msgspec.structs.replace(record, created_s=before.created_s) != before:
            await put_model(bus, record)
        await put_intent(bus, IntentRecord(model=record.id, want="loaded", replicas=replicas, by=BY_UP))


async def put_model(bus: Bus, model: ModelRecord) -> None:
    """Write an entry of the catalogue."""
    await Bucket(bus, names.PLAN).put(names.model_key(model.id), msgspec.json.encode(model))


async def put_intent(bus: Bus, intent: IntentRecord) -> None:
    """Write what is wanted of a model, with the time of now."""
    intent.at_s = time.time()
    await Bucket(bus, names.PLAN).put(names.intent_key(intent.model), msgspec.json.encode(intent))

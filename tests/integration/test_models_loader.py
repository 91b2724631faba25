"""The catalogue's file in the plan bucket: loaded, followed, and kept when it turns bad."""

from pathlib import Path

import pytest

from gateway import models_loader
from gateway.models_loader import ModelsLoader
from shared import names
from shared.bus import Bus
from shared.errors import CatalogueError
from shared.fleet import Fleet
from shared.kv import Bucket
from shared.messages import encode
from shared.records import ModelRecord
from tests.support.eventually import eventually

ONE = '[[model]]\nid = "{id}"\nsource = "org/{id}"\n'


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_loader, "LOOK_S", 0.02)


async def test_a_file_is_loaded_followed_and_kept_when_it_turns_bad(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(ONE.format(id="a"))
    async with Fleet(bus) as fleet:
        own = ModelRecord(id="own", source="org/own")
        await Bucket(bus, names.PLAN).put(names.model_key("own"), encode(own))
        loader = ModelsLoader(bus, fleet, file)
        await loader.start()
        try:
            await fleet.wait_for(lambda now: set(now.models) == {"a", "own"}, timeout_s=5)
            file.write_text(ONE.format(id="b") + '[aliases]\nx = "b"\n')
            await fleet.wait_for(lambda now: set(now.models) == {"b", "own"}, timeout_s=5)
            assert fleet.models["b"].aliases == ["x"]
            file.write_text(ONE.format(id="c") + "pined = true\n")
            await eventually(lambda: [record.__dict__["fields"]["line"] for record in caplog.records] == [4])
            assert set(fleet.models) == {"b", "own"}
            file.write_text(ONE.format(id="c"))
            await fleet.wait_for(lambda now: set(now.models) == {"c", "own"}, timeout_s=5)
        finally:
            await loader.close()
            await loader.close()


async def test_a_second_gateway_with_the_same_file_writes_nothing(bus: Bus, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(ONE.format(id="a"))
    async with Fleet(bus) as fleet:
        first, second = ModelsLoader(bus, fleet, file), ModelsLoader(bus, fleet, file)
        await first.start()
        await fleet.wait_for(lambda now: "a" in now.models, timeout_s=5)
        held = await Bucket(bus, names.PLAN).get(names.model_key("a"))
        await second.start()
        assert await Bucket(bus, names.PLAN).get(names.model_key("a")) == held
        await first.close()
        await second.close()


async def test_a_bad_file_at_the_start_is_an_error(bus: Bus, tmp_path: Path) -> None:
    async with Fleet(bus) as fleet:
        with pytest.raises(CatalogueError, match="cannot be read"):
            await ModelsLoader(bus, fleet, tmp_path / "none.toml").start()

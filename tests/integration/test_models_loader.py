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


async def test_a_file_that_is_being_written_is_waited_for(bus: Bus, tmp_path: Path) -> None:
    """Half of it may be good TOML: whatever came later would be unloaded, and what runs on it ended."""
    file = tmp_path / "models.toml"
    whole = ONE.format(id="a") + ONE.format(id="b")
    file.write_text(whole)
    async with Fleet(bus) as fleet:
        gone: list[str] = []
        fleet.on_change(lambda key, record: gone.append(key) if record is None else None)
        loader = ModelsLoader(bus, fleet, file)
        await loader.start()
        try:
            await fleet.wait_for(lambda now: set(now.models) == {"a", "b"}, timeout_s=5)
            looks = 0
            stamp = loader._stamp

            def grow() -> object:
                """An editor that empties the file and writes it line by line, one with each look."""
                nonlocal looks
                lines = (ONE.format(id="c") + whole).splitlines(keepends=True)
                if looks <= len(lines):
                    file.write_text("".join(lines[:looks]))
                looks += 1
                return stamp()

            loader._stamp = grow  # type: ignore[method-assign,assignment]
            await fleet.wait_for(lambda now: set(now.models) == {"a", "b", "c"}, timeout_s=5)
            assert gone == []
        finally:
            await loader.close()


async def test_a_file_that_is_gone_changes_nothing_until_it_is_back(bus: Bus, tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    file.write_text(ONE.format(id="a"))
    async with Fleet(bus) as fleet:
        loader = ModelsLoader(bus, fleet, file)
        await loader.start()
        try:
            await fleet.wait_for(lambda now: "a" in now.models, timeout_s=5)
            file.unlink()
            await eventually(lambda: loader._seen is None)
            assert set(fleet.models) == {"a"}
            file.write_text(ONE.format(id="b"))
            await fleet.wait_for(lambda now: set(now.models) == {"b"}, timeout_s=5)
        finally:
            await loader.close()

"""Imports ahead of a configuration."""

import sys
import threading
from pathlib import Path

import pytest

from worker.engine import warm


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of modules that are imported in this order; the second waits until the test lets it."""
    gate = threading.Event()
    names = ["warm_first", "warm_second", "warm_third"]
    for name in names:
        (tmp_path / f"{name}.py").write_text("import warm_gate\nwarm_gate.pass_(__name__)\n")
    (tmp_path / "warm_gate.py").write_text("def pass_(name): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(warm, "MODULES", ("no_such_module", *names))
    monkeypatch.setattr(warm, "FAMILIES", ())
    import warm_gate  # type: ignore[import-not-found]

    def pass_(name: str) -> None:
        if name == "warm_second":
            warm_gate.reached.set()
            assert gate.wait(10)

    warm_gate.pass_, warm_gate.reached, warm_gate.gate = pass_, threading.Event(), gate
    monkeypatch.setitem(sys.modules, "warm_gate", warm_gate)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return names


def test_it_tells_when_all_is_imported(modules: list[str]) -> None:
    sys.modules["warm_gate"].gate.set()
    done = threading.Event()
    warming = warm.Warming(done.set).start()
    assert done.wait(10)
    assert all(name in sys.modules for name in modules)
    warming.finish()


def test_who_needs_the_process_gets_it_after_the_import_that_is_going_on(modules: list[str]) -> None:
    gate, told = sys.modules["warm_gate"], threading.Event()
    warming = warm.Warming(told.set).start()
    assert gate.reached.wait(10)
    finishing = threading.Thread(target=warming.finish)
    finishing.start()
    warming._wanted.wait(10)
    gate.gate.set()
    finishing.join(10)
    assert not finishing.is_alive() and not told.is_set()
    assert "warm_second" in sys.modules and "warm_third" not in sys.modules

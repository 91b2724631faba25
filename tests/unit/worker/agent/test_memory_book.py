"""What loads took beyond their grants."""

from pathlib import Path

from shared.records import ModelRecord
from worker.agent.memory_book import FILE, MAX_ENTRIES, MemoryBook

MODEL = ModelRecord(id="m", source="acme/m")
MB = 1 << 20


def test_an_excess_is_added_once_and_survives_a_restart(tmp_path: Path) -> None:
    book = MemoryBook(tmp_path)
    assert book.excess_bytes(MODEL, "cpu") == 0
    book.note(MODEL, "cpu", 100, 130)
    assert MemoryBook(tmp_path).excess_bytes(MODEL, "cpu") == 30
    book.note(MODEL, "cpu", 130, 125)  # the next grant was enough
    assert book.excess_bytes(MODEL, "cpu") == 30
    assert book.excess_bytes(MODEL, "cuda") == 0


def test_another_variant_is_another_matter(tmp_path: Path) -> None:
    book = MemoryBook(tmp_path)
    book.note(MODEL, "cpu", 100, 130)
    assert book.excess_bytes(ModelRecord(id="m", source="acme/m", quantization="int8"), "cpu") == 0


def test_a_broken_file_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("{")
    book = MemoryBook(tmp_path)
    assert book.excess_bytes(MODEL, "cpu") == 0
    book.note(MODEL, "cpu", 1, 2)
    assert MemoryBook(tmp_path).excess_bytes(MODEL, "cpu") == 1


def test_it_does_not_grow_for_ever(tmp_path: Path) -> None:
    book = MemoryBook(tmp_path)
    for number in range(MAX_ENTRIES + 1):
        book.note(ModelRecord(id=f"m{number}", source="s"), "cpu", 1, 2)
    assert book.excess_bytes(ModelRecord(id="m0", source="s"), "cpu") == 0
    assert book.excess_bytes(ModelRecord(id=f"m{MAX_ENTRIES}", source="s"), "cpu") == 1


def test_a_grant_that_ran_out_grows_by_steps(tmp_path: Path) -> None:
    book = MemoryBook(tmp_path)
    assert book.lacked(MODEL, "cpu", 400 * MB) == 500 * MB
    assert book.excess_bytes(MODEL, "cpu") == 100 * MB
    assert book.lacked(MODEL, "cpu", 100 * MB) == 164 * MB
    assert MemoryBook(tmp_path).excess_bytes(MODEL, "cpu") == 164 * MB

"""The step stamp is readable from the other side of its file descriptor at any moment."""

import os

import pytest

from worker import stamp
from worker.stamp import Stamp


@pytest.fixture
def ends() -> object:
    fd = stamp.create()
    writer, reader = Stamp(fd), Stamp(fd)
    os.close(fd)  # both maps live on
    yield writer, reader
    writer.close()
    reader.close()


def test_a_fresh_stamp_has_no_age(ends: tuple[Stamp, Stamp]) -> None:
    assert ends[1].read() == (0, "start", 0.0, 0.0)


def test_what_one_side_writes_the_other_reads(ends: tuple[Stamp, Stamp]) -> None:
    writer, reader = ends
    writer.write(2**40, "prefill", predicted_s=1.5)
    reading = reader.read()
    assert (reading.step, reading.phase, reading.predicted_s) == (2**40, "prefill", 1.5)
    assert 0.0 <= reading.age_s < 5.0
    writer.write(2**40 + 1, "decode")
    assert reader.read()[:2] == (2**40 + 1, "decode")


def test_an_unknown_phase_is_refused(ends: tuple[Stamp, Stamp]) -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        ends[0].write(1, "dancing")  # type: ignore[arg-type]


def test_close_twice(ends: tuple[Stamp, Stamp]) -> None:
    ends[0].close()
    ends[0].close()

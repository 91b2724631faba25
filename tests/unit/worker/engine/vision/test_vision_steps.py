"""When images are seen, and what waits for them."""

import pytest

from tests.support.stepping import Collected
from tests.support.vision import picture, user
from tests.unit.worker.engine.vision.conftest import make_subject
from worker.engine.errors import UnsupportedArchitecture
from worker.engine.vision.seer import Seer
from worker.engine.vision.visual import Visual

TEXT = [{"role": "user", "content": "The river"}]


def drain(engine) -> Collected:
    collected = Collected()
    for _ in range(2000):
        if not engine.has_work:
            return collected
        collected.take(engine.step())
    raise AssertionError("still at work")


def count_seen(subject, monkeypatch) -> list[int]:
    """The tokens of each image that the tower sees from now on."""
    seen: list[int] = []
    encode = subject.sight._tower.encode

    def counted(pixels, num_tokens):
        seen.append(num_tokens)
        return encode(pixels, num_tokens)

    monkeypatch.setattr(subject.sight._tower, "encode", counted)
    return seen


def test_an_image_is_seen_once(subject, monkeypatch):
    engine = subject.engine(step=6)
    seen = count_seen(subject, monkeypatch)
    for key, messages in {"a": [user(picture(1))], "b": [user("And ", picture(1), "?")]}.items():
        engine.submit(subject.job(key, messages))
    drain(engine)
    assert len(seen) == 1
    engine.submit(subject.job("c", [user(picture(1), "now")]))
    drain(engine)
    assert len(seen) == 1


def test_a_prompt_that_is_known_is_not_seen_again(subject, monkeypatch):
    engine = subject.engine()
    messages = [user("What is ", picture(1), "this?")]
    engine.submit(subject.job("first", messages))
    drain(engine)
    subject.sight.forget()
    seen = count_seen(subject, monkeypatch)
    engine.submit(subject.job("again", messages))
    assert drain(engine).ids["again", 0] == subject.expect(messages)
    assert seen == []


def test_streams_move_on_in_every_step_in_which_an_image_is_seen(subject, monkeypatch):
    engine = subject.engine(step=200)
    subject.sight._step_tokens = 1  # one image a step
    try:
        engine.submit(subject.job("text", TEXT, 60))
        collected = Collected()
        while not collected.ids.get(("text", 0)):
            collected.take(engine.step())
        seen = count_seen(subject, monkeypatch)
        engine.submit(subject.job("three", [user(picture(1), picture(2), picture(3))]))
        steps = []
        while not collected.ids.get(("three", 0)):
            before = len(seen), len(collected.ids["text", 0])
            collected.take(engine.step())
            steps.append((len(seen) - before[0], len(collected.ids["text", 0]) - before[1]))
    finally:
        subject.sight._step_tokens = 24
    assert [images for images, _ in steps if images] == [1, 1, 1]
    assert all(tokens >= 1 for _, tokens in steps)


def test_a_job_that_goes_while_its_images_are_made_ready_leaves_nothing(subject):
    engine = subject.engine()
    engine.submit(subject.job("gone", [user(picture(9))]))
    engine.abort([("gone", -1)])
    engine.submit(subject.job("stays", [user(picture(8))]))
    collected = drain(engine)
    assert [key for key, _ in collected.ids] == ["stays"]
    assert not engine.has_work


def test_an_engine_without_sight_refuses_images(subject):
    engine = subject.engine()
    engine._sight = None
    engine.submit(subject.job("blind", [user(picture(1))]))
    assert "takes no images" in drain(engine).refused["blind"].message


def test_a_load_finds_out_when_images_are_computed_wrongly(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Visual, "overlaps", lambda self, start, stop: iter(()))
        with pytest.raises(UnsupportedArchitecture, match="with an image its logits differ"):
            make_subject("llava", tmp_path / "llava")
    monkeypatch.setattr(Seer, "_positions", lambda self, rows: [[range(row.start, row.stop) for row in rows]] * 3)
    with pytest.raises(UnsupportedArchitecture, match="a trial with an image failed"):
        make_subject("qwen2_vl", tmp_path / "qwen")

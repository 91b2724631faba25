"""A tiny checkpoint of each family, and engines that load it as a rank does."""

from pathlib import Path
from typing import NamedTuple

import pytest

from shared.messages import Prompt
from tests.support.vision import FAMILIES, generate, make_vision_checkpoint
from worker.engine import attention
from worker.engine.engine import Engine
from worker.engine.prepared import PathChoice, Prepared
from worker.engine.vision.sight import Sight
from worker.models.vision import read_vision
from worker.protocol import Choice, Image, Sample, Submit
from worker.text.model_text import ModelText

BLOCK, STEP, NEW = 4, 24, 10


class Subject(NamedTuple):
    """A loaded model of a family, and what reads its prompts."""

    family: str
    path: Path
    prepared: Prepared
    sight: Sight
    text: ModelText

    def engine(self, *, num_blocks: int = 128, slots: int = 8, step: int = STEP, **options) -> Engine:
        """A new engine with an empty cache."""
        import torch

        from worker.engine.runner import TorchRunner

        runner = TorchRunner(self.prepared, "cpu", torch.float32, num_blocks, BLOCK)
        self.sight.forget()
        return Engine(
            runner,
            num_blocks=num_blocks,
            block_tokens=BLOCK,
            slots=slots,
            prefill_tokens=step,
            context_limit=400,
            sight=self.sight,
            **options,
        )

    def job(self, key: str, messages: list[dict], max_tokens: int = NEW, *, n: int = 1, **fields) -> Submit:
        """A greedy job of a conversation."""
        reading = self.text.read(Prompt(messages=messages))
        return Submit(
            key=key,
            prompt=reading.ids,
            images=[Image(one.data, one.digest, one.grid, one.runs) for one in reading.images],
            choices=[Choice(index) for index in range(n)],
            sample=Sample(seed=1, temperature=0.0, max_tokens=max_tokens),
            **fields,
        )

    def expect(self, messages: list[dict], num_tokens: int = NEW) -> list[int]:
        """What transformers generates."""
        return generate(self.path, messages, num_tokens)


USUAL = ("llava", "qwen2_5_vl", "qwen3_vl", "smolvlm")  # one of each kind; the others are slow tests, but for one


@pytest.fixture(
    scope="session",
    params=[pytest.param(one, marks=() if one in USUAL else pytest.mark.slow) for one in FAMILIES],
)
def subject(request, tmp_path_factory) -> Subject:
    """A family."""
    return make_subject(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=[one for one in FAMILIES if one not in USUAL])
def another(request, tmp_path) -> Subject:
    """One of the other families."""
    return make_subject(request.param, tmp_path)


def make_subject(family: str, path: Path) -> Subject:
    """Make a checkpoint and load it."""
    import torch

    from worker.engine.vision.prepare import prepare_seeing
    from worker.models.load import load

    make_vision_checkpoint(path, family)
    vision = read_vision(path)
    assert vision is not None
    _, prepared, sight = prepare_seeing(
        lambda: load(path, device="cpu", dtype="float32", attention=attention.NAME),
        torch.float32,
        PathChoice(),
        path=path,
        vision=vision,
        slots=8,
        step_tokens=STEP,
    )
    return Subject(family, path, prepared, sight, ModelText.load(path))

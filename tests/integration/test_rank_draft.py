"""A rank with a draft model: loaded beside the first one, the same outputs, another vocabulary refused."""

from pathlib import Path

import pytest

from tests.support.ranks import ids, job, rank_config, running_rank
from tests.support.tiny import make_checkpoint, write_tokenizer
from worker.protocol import Choice, Fatal, Ready


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("large"))


@pytest.mark.slow
def test_greedy_and_seeded_outputs_are_those_of_a_rank_without(model: Path, tmp_path: Path) -> None:
    """The seeded one is checked by going on with a part of it, which takes another way through batches and guesses."""
    import torch
    from transformers import AutoModelForCausalLM

    small = make_checkpoint(tmp_path / "small", num_hidden_layers=1)
    prompt = list(range(3, 60))
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    given = torch.tensor([prompt])
    expected = reference.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=60, do_sample=False, eos_token_id=None
    )
    with running_rank() as rank:
        rank.send(rank_config(model, options={"draft": str(small)}))
        rank.wait_for(Ready)
        rank.send(job("a", prompt, max_tokens=60), job("b", prompt, max_tokens=60, seed=7, temperature=1.0))
        outputs = rank.collect(("a", 0), ("b", 0))
        whole = ids(outputs["b", 0])
        resumed = job("c", prompt, max_tokens=60, choices=[Choice(0, whole[:20])], seed=7, temperature=1.0)
        rank.send(resumed)
        rest = ids(rank.collect(("c", 0))["c", 0])
    assert ids(outputs["a", 0]) == expected[0, len(prompt) :].tolist()
    assert rest == whole[20:]


@pytest.mark.slow
def test_a_draft_model_of_another_vocabulary_is_refused(model: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", num_hidden_layers=1)
    write_tokenizer(other, "llama3")
    with running_rank() as rank:
        rank.send(rank_config(model, options={"draft": str(other)}))
        message = rank.wait_for(Fatal).message
    assert message.startswith("DraftMismatch: ") and "token 384" in message

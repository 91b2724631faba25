"""A model from a hub, through the whole fleet: downloaded, loaded, and answering what transformers' generate says."""

import asyncio
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.cli.intents import put_intent, put_model
from shared.bus import Bus
from shared.fleet import Fleet
from shared.records import IntentRecord, ModelRecord
from tests.support.fleet_process import FleetProcess, plexus, wait_for
from tests.support.hub import Hub, running_hub
from tests.support.tiny import make_checkpoint

REPOSITORY = "tiny-lab/Tiny-Qwen3"
TOKENS = 48
CONVERSATIONS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "Who lights the lamp?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "你好 🙂 — and then?"},
    ],
]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """A loopback hub."""
    with running_hub() as hub:
        yield hub


@pytest.fixture(scope="module")
def checkpoint(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub has: bf16 weights, tied, in shards with an index, with a family's chat template."""
    folder = tmp_path_factory.mktemp("hub") / "Tiny-Qwen3"
    path = make_checkpoint(folder, "qwen3", dtype="bfloat16", shards=3, tie_word_embeddings=True)
    hub.repositories[REPOSITORY] = path
    return path


def generated(path: Path) -> list[str]:
    """What transformers makes of the conversations, greedily, in float32."""
    warnings.simplefilter("ignore")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    texts = []
    for messages in CONVERSATIONS:
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, repetition_penalty=1.0
        )
        texts.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


async def ask(http: httpx.AsyncClient, api: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    body = {"model": REPOSITORY, "messages": messages, "temperature": 0, "max_tokens": TOKENS}
    headers = {"x-include-thinking": "true"}  # random weights may say <think>; generate does not set it apart
    response = await http.post(f"{api}/chat/completions", json=body, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.timeout(240)
async def test_a_model_from_a_hub_answers_as_generate_does(
    hub: Hub, checkpoint: Path, tiny: Path, tmp_path: Path
) -> None:
    hub.bytes_per_s = 400_000  # slow enough to be seen coming
    with FleetProcess(tmp_path, "--model", tiny, **hub.environment(tmp_path / "cache")) as fleet:
        await asyncio.to_thread(fleet.started)
        async with await Bus.connect(fleet.bus_settings(), kind="cli", ident="test") as bus, Fleet(bus) as view:
            seen: set[tuple[str, bool]] = set()

            def is_ready(view: Fleet) -> bool:
                replicas = view.replicas_of(REPOSITORY)
                seen.update((r.stage, 0 < r.done_bytes < r.total_bytes) for r in replicas)
                return any(r.state == "ready" for r in replicas)

            view.on_change(lambda kind, value: is_ready(view) and None)
            await put_model(bus, ModelRecord(id=REPOSITORY, source=REPOSITORY, dtype="float32"))
            await put_intent(bus, IntentRecord(model=REPOSITORY, want="loaded", by="test"))
            await view.wait_for(is_ready, timeout_s=90)
        assert ("download", True) in seen, f"the download showed no progress: {seen}"
        async with httpx.AsyncClient(timeout=60) as http:
            answers = await asyncio.gather(*(ask(http, fleet.api, messages) for messages in CONVERSATIONS))
        assert fleet.end() == 0
    texts = [answer["choices"][0]["message"]["content"] for answer in answers]
    assert texts == await asyncio.to_thread(generated, checkpoint)
    assert len(set(texts)) == 3


@pytest.mark.timeout(240)
def test_a_download_that_a_fleet_starts_with_is_seen_and_called_off(
    hub: Hub, checkpoint: Path, tiny: Path, tmp_path: Path
) -> None:
    hub.bytes_per_s = 8_000  # half a minute
    models = ("--model", tiny, "--model", REPOSITORY)
    with FleetProcess(tmp_path, *models, **hub.environment(tmp_path / "cache")) as fleet:
        wait_for(lambda: f"{REPOSITORY}: busy" in fleet.said(), timeout_s=90.0)
        assert REPOSITORY in fleet.operate("models")
        fleet.operate("unload", REPOSITORY, "--wait")
        fleet.started()
        assert fleet.end() == 0
    assert "no fleet found" in plexus("status", "--data-dir", fleet.data_dir).stderr

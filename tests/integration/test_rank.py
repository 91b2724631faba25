"""A real rank process over a real channel."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.process import is_running
from tests.support.ranks import RankProcess, ids, job, rank_config, running_rank, soon
from tests.support.tiny import make_checkpoint
from worker.channel import ChannelClosed
from worker.protocol import Abort, Choice, Fatal, Loading, Ready, Step, Stop


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("qwen3"))


@pytest.fixture
def rank() -> Iterator[RankProcess]:
    with running_rank() as rank:
        yield rank


# --- without a model: process, channel, protocol -------------------------------------------------------------


def start_synthetic(rank: RankProcess, model: Path, **options: float) -> Ready:
    rank.send(rank_config(model, backend="synthetic", options=options))
    return rank.wait_for(Ready)


def test_words_are_a_function_of_seed_choice_and_position(rank: RankProcess, model: Path) -> None:
    ready = start_synthetic(rank, model)
    assert (ready.context_limit, ready.vocab_size, ready.block_tokens * ready.blocks) == (512, 448, 4 * 512)
    rank.send(job("a", [1, 2, 3], choices=[Choice(0), Choice(1)], seed=7), job("b", [9], seed=7))
    first = rank.collect(("a", 0), ("a", 1), ("b", 0))
    assert ids(first["a", 0]) == ids(first["b", 0])
    assert ids(first["a", 0]) != ids(first["a", 1])
    rank.send(job("c", [1, 2, 3], choices=[Choice(0, ids(first["a", 0])[:5])], seed=7), job("d", [1], seed=8))
    second = rank.collect(("c", 0), ("d", 0))
    assert second["c", 0][0].start == 5
    assert ids(second["c", 0]) == ids(first["a", 0])[5:]
    assert ids(second["d", 0]) != ids(first["b", 0])


def test_words_come_at_the_pace_asked_for(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model, tokens_per_s=100)
    started = time.monotonic()
    rank.send(*(job(key, [1], max_tokens=20) for key in "abcd"))
    rank.collect(*((key, 0) for key in "abcd"))
    assert time.monotonic() - started >= 0.2
    together = [len(message.outputs) for message in rank.seen if isinstance(message, Step)]
    assert together.count(4) > 10  # not one after the other


def test_an_aborted_job_is_not_heard_of_again_and_gives_its_room_back(rank: RankProcess, model: Path) -> None:
    ready = start_synthetic(rank, model, tokens_per_s=50)
    rank.send(job("a", [1] * 40, max_tokens=400), job("b", [1], max_tokens=20))
    while not any(output.key == "a" for output in rank.wait_for(Step).outputs):
        pass
    rank.send(Abort([("a", -1)]))
    rank.collect(("b", 0))
    rank.send(job("c", [1], max_tokens=3))
    outputs = rank.collect(("c", 0))
    assert set(outputs) == {("c", 0)}
    last = [message for message in rank.seen if isinstance(message, Step)][-1]
    assert (last.running, last.waiting, last.blocks_free) == (0, 0, ready.blocks)


def test_an_abort_of_everything_is_answered(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model, tokens_per_s=20)
    rank.send(job("a", [1], max_tokens=400))
    assert rank.wait_for(Step).running == 1
    rank.send(Abort([("a", -1)]))
    while rank.wait_for(Step).running:
        pass


def test_a_job_that_cannot_run_is_refused_and_the_next_runs(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model)
    rank.send(job("long", [1] * 600), job("bad", [100_000]))
    refused = {}
    while len(refused) < 2:
        refused |= {entry.key: entry.kind for entry in rank.wait_for(Step).refused}
    assert refused == {"long": "context_length_exceeded", "bad": "invalid_request"}
    rank.send(job("good", [1]))
    assert len(ids(rank.collect(("good", 0))["good", 0])) == 8


def test_a_small_cache_can_be_asked_for(rank: RankProcess, model: Path) -> None:
    assert start_synthetic(rank, model, cache_tokens=100).blocks == 4


def test_stop_ends_it_and_nothing_was_printed(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model)
    rank.send(Stop())
    assert rank.process.wait(10) == 0
    assert rank.close() == ("", "")


def test_signals_are_the_fronts_business(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model)
    rank.process.terminate()
    rank.process.send_signal(2)
    rank.send(job("a", [1]))
    assert len(ids(rank.collect(("a", 0))["a", 0])) == 8


def test_it_ends_when_the_channel_closes_even_within_a_step(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model, tokens_per_s=0.01)  # a step of 100 s
    rank.send(job("a", [1]))
    assert soon(lambda: rank.stamp.read().step > 0)
    rank.channel.close()
    assert rank.process.wait(5) == 0


def test_a_killed_rank_closes_the_channel(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model)
    rank.process.kill()
    with pytest.raises(ChannelClosed):
        rank.next()


PARENT = """
import os, subprocess, sys
from tests.support.ranks import arguments
fds = (int(sys.argv[1]), int(sys.argv[2]))
child = subprocess.Popen([sys.executable, "-m", "worker.engine.rank", *arguments(fds, os.getpid())], pass_fds=fds)
print(child.pid, flush=True)
child.wait()
"""


def test_it_ends_with_its_parent(model: Path) -> None:
    """The test holds both ends of the channel, so that only the parent's death can end the rank."""
    from worker import channel, stamp

    ours, theirs = channel.pair()
    fds = (theirs.fileno(), stamp.create())
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, fds)], pass_fds=fds, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        front = channel.Channel(ours)
        from worker.protocol import encode

        front.send(encode(rank_config(model, backend="synthetic")))
        assert front.receive(20)
        assert is_running(pid)
        parent.kill()
    assert soon(lambda: not is_running(pid))
    for end in (ours, theirs):
        end.close()
    os.close(fds[1])


def test_the_stamp_follows(rank: RankProcess, model: Path) -> None:
    assert rank.stamp.read().phase == "start"
    start_synthetic(rank, model, tokens_per_s=5)
    assert rank.stamp.read().phase == "idle"
    rank.send(job("a", [1] * 30, max_tokens=2))
    assert soon(lambda: rank.stamp.read().phase == "prefill")
    assert soon(lambda: rank.stamp.read().phase == "decode")
    rank.collect(("a", 0))
    assert soon(lambda: rank.stamp.read().phase == "idle")
    assert rank.stamp.read().step == 2


def fatal(rank: RankProcess) -> str:
    """What the rank says before it exits with 1."""
    message = rank.wait_for(Fatal).message
    with pytest.raises(ChannelClosed):
        rank.next()
    assert rank.process.wait(10) == 1
    return message


def test_a_directory_without_a_model_is_fatal_and_says_so(rank: RankProcess, tmp_path: Path) -> None:
    rank.send(rank_config(tmp_path))
    assert fatal(rank).startswith(f"NotServable: {tmp_path} holds no weights")


def test_an_unknown_option_is_fatal(rank: RankProcess, model: Path) -> None:
    rank.send(rank_config(model, backend="synthetic", options={"speed": 3}))
    assert "speed" in fatal(rank)


@pytest.mark.parametrize("frame", [b"{", b'{"type": "dance"}', b'{"type": "stop"}'])
def test_a_front_that_does_not_speak_the_protocol_is_fatal(rank: RankProcess, frame: bytes) -> None:
    rank.channel.send(frame)
    assert fatal(rank)


def test_a_second_configuration_is_fatal(rank: RankProcess, model: Path) -> None:
    start_synthetic(rank, model)
    rank.send(rank_config(model))
    assert "configured once" in fatal(rank)


# --- with a model ---------------------------------------------------------------------------------------------


def generate(path: Path, prompt: list[int], max_tokens: int, dtype: str = "float32") -> list[int]:
    """What transformers itself says, greedily."""
    import torch
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), attn_implementation="eager")
    reference.generation_config.eos_token_id = None
    inputs = torch.tensor([prompt])
    with torch.inference_mode():
        out = reference.generate(
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=max_tokens, do_sample=False, top_k=None,
            top_p=None, temperature=None,
        )  # fmt: skip
    return out[0, len(prompt) :].tolist()


PROMPTS = {"a": [5, 300, 17, 88, 201, 3, 3, 9], "b": list(range(10, 160)), "c": [42]}


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text", "deepseek_v3", "gpt2"])
def test_jobs_side_by_side_say_what_transformers_says_to_each_alone(arch: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, arch, shards=2)
    with running_rank() as rank:
        rank.send(rank_config(path))
        ready = rank.wait_for(Ready)
        stages = list(dict.fromkeys(message.stage for message in rank.seen if isinstance(message, Loading)))
        assert stages == ["import", "read", "pack", "warm up"]
        read = [message for message in rank.seen if isinstance(message, Loading) and message.stage in ("read", "pack")]
        assert read[-1].done_bytes == read[-1].total_bytes > 0
        assert (ready.vocab_size, ready.context_limit) == (448, 512)
        rank.send(job("a", PROMPTS["a"], max_tokens=40), job("b", PROMPTS["b"], max_tokens=12))
        rank.send(job("c", PROMPTS["c"], max_tokens=20))
        outputs = rank.collect(("a", 0), ("b", 0), ("c", 0))
    order = [output.key for message in rank.seen if isinstance(message, Step) for output in message.outputs]
    assert order.index("b") < len(order) - order[::-1].index("a")  # b ran while a did
    for key, prompt in PROMPTS.items():
        assert ids(outputs[key, 0]) == generate(path, prompt, len(ids(outputs[key, 0])))


def test_tied_bfloat16_from_shards(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, dtype="bfloat16", shards=3, tie_word_embeddings=True)
    with running_rank() as rank:
        rank.send(rank_config(path, dtype="float32"))
        rank.wait_for(Ready)
        rank.send(job("a", PROMPTS["a"], max_tokens=16))
        wide = ids(rank.collect(("a", 0))["a", 0])
    assert wide == generate(path, PROMPTS["a"], 16, "float32")


def test_once_loaded_the_files_do_not_matter(tmp_path: Path, rank: RankProcess) -> None:
    path = make_checkpoint(tmp_path)
    expected = generate(path, PROMPTS["a"], 8)
    rank.send(rank_config(path))
    rank.wait_for(Ready)
    with (path / "model.safetensors").open("r+b") as file:
        file.write(bytes((path / "model.safetensors").stat().st_size))
    rank.send(job("a", PROMPTS["a"]))
    assert ids(rank.collect(("a", 0))["a", 0]) == expected


def test_a_resumed_choice_goes_on_as_if_nothing_had_happened(model: Path, rank: RankProcess) -> None:
    rank.send(rank_config(model))
    rank.wait_for(Ready)
    sample = {"temperature": 1.0, "seed": 11}
    rank.send(job("whole", PROMPTS["a"], max_tokens=20, **sample))
    whole = ids(rank.collect(("whole", 0))["whole", 0])
    rank.send(job("rest", PROMPTS["a"], max_tokens=20, choices=[Choice(0, whole[:9])], **sample))
    outputs = rank.collect(("rest", 0))["rest", 0]
    assert (outputs[0].start, ids(outputs)) == (9, whole[9:])


def test_weights_that_are_missing_are_named(tmp_path: Path, rank: RankProcess) -> None:
    from safetensors.torch import load_file, save_file

    path = make_checkpoint(tmp_path)
    tensors = load_file(path / "model.safetensors")
    tensors["stray.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    rank.send(rank_config(path))
    message = fatal(rank)
    assert message.startswith("BadWeights: ")
    assert "1 missing (model.layers.1.mlp.up_proj.weight)" in message
    assert "1 unexpected (stray.weight)" in message


def test_weights_of_another_shape_are_named(tmp_path: Path, rank: RankProcess) -> None:
    import json

    path = make_checkpoint(tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"intermediate_size": 100}))
    rank.send(rank_config(path))
    message = fatal(rank)
    assert "of another shape (model.layers.0.mlp.down_proj.weight" in message


def test_a_model_of_unknown_type_is_fatal_with_a_remedy(tmp_path: Path, rank: RankProcess) -> None:
    path = make_checkpoint(tmp_path)
    (path / "config.json").write_text('{"model_type": "telepathy", "auto_map": {"AutoConfig": "x.Y"}}')
    rank.send(rank_config(path))
    assert "models that bring their own code are not supported" in fatal(rank)


def test_a_grant_too_small_is_fatal_with_the_numbers(model: Path, rank: RankProcess) -> None:
    rank.send(rank_config(model, memory_bytes=100 << 20))
    message = fatal(rank)
    assert message.startswith("DoesNotFit: needs ")
    assert "but 105 MB is granted; grant more memory" in message


def test_another_dtype_has_another_fingerprint(model: Path) -> None:
    prints = []
    for dtype in ("auto", "bfloat16"):
        with running_rank() as rank:
            rank.send(rank_config(model, dtype=dtype))
            prints.append(rank.wait_for(Ready).fingerprint)
    assert prints[0] != prints[1]

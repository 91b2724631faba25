"""Getting models from a hub: in a process of its own, over real HTTP, with everything that can go wrong on the way."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.process import is_running
from tests.support.hub import MAIN, Hub, running_hub
from tests.support.tiny import make_checkpoint
from worker.models.errors import DiskFull, SourceUnreachable
from worker.models.files import check_directory
from worker.models.hub import resolve

CHUNK = 10 << 20  # huggingface_hub writes in pieces of this size; what is cut within one is fetched again
NAME = "tiny-lab/Tiny-Qwen3"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As published: shards with index, tied bfloat16 weights, sampling defaults, template, and files nobody needs."""
    folder = make_checkpoint(
        tmp_path_factory.mktemp("published"),
        dtype="bfloat16",
        shards=2,
        tie_word_embeddings=True,
        vocab_size=65536,
        hidden_size=192,
    )
    (folder / "README.md").write_text("# Tiny")
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    (folder / "original").mkdir()
    (folder / "original" / "consolidated.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[Hub]:
    with running_hub() as hub:
        hub.repositories[NAME] = checkpoint
        yield hub


def big_file(checkpoint: Path) -> str:
    return max(checkpoint.glob("*.safetensors"), key=lambda file: file.stat().st_size).name


def fetch(hub: Hub, cache: Path, *arguments: str, **environment: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and lines of ``python -m worker.models.fetch``."""
    done = subprocess.run(
        [sys.executable, "-m", "worker.models.fetch", *arguments],
        env=os.environ | hub.environment(cache) | environment,
        capture_output=True,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_a_download_is_whole_lean_and_told(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.bytes_per_s = 20 << 20
    code, lines = fetch(hub, tmp_path, NAME)
    assert code == 0
    path = Path(lines[-1]["path"])
    check_directory(path)
    assert sorted(file.name for file in path.iterdir()) == sorted(
        file.name for file in checkpoint.iterdir() if file.name not in ("README.md", "pytorch_model.bin", "original")
    )
    for file in path.glob("*.safetensors"):
        assert file.read_bytes() == (checkpoint / file.name).read_bytes()
    told = lines[:-1]
    total = sum(file.stat().st_size for file in path.iterdir())
    assert {line["total"] for line in told} == {total}
    done = [line["done"] for line in told]
    assert done == sorted(done)
    assert done[-1] == total
    assert any(0 < part < total for part in done)


def test_a_second_time_nothing_is_fetched(hub: Hub, tmp_path: Path) -> None:
    first = fetch(hub, tmp_path, NAME)
    hub.sent.clear()
    second = fetch(hub, tmp_path, NAME)
    assert second[0] == 0
    assert second[1][-1] == first[1][-1]
    assert second[1][0]["done"] == second[1][0]["total"]
    assert hub.sent == []


def test_a_broken_connection_is_taken_up_where_it_stopped(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    file = big_file(checkpoint)
    size = (checkpoint / file).stat().st_size
    assert size > 2 * CHUNK
    cut = CHUNK + (4 << 20)
    hub.cuts[file] = [cut]
    code, lines = fetch(hub, tmp_path, NAME)
    assert code == 0
    assert (Path(lines[-1]["path"]) / file).read_bytes() == (checkpoint / file).read_bytes()
    first, second = [sent for sent in hub.sent if sent.file == file]
    assert (first.size, first.asked_range) == (cut, False)
    assert (second.start, second.asked_range) == (CHUNK, True)
    assert second.size == size - CHUNK
    others = [sent.file for sent in hub.sent if sent.file != file]
    assert len(others) == len(set(others))


def test_a_hub_that_fails_for_a_while_is_waited_for(hub: Hub, tmp_path: Path) -> None:
    hub.failing = 3
    code, lines = fetch(hub, tmp_path, NAME)
    assert (code, "path" in lines[-1]) == (0, True)


def test_without_the_hub_a_whole_model_comes_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    _, lines = fetch(hub, tmp_path, NAME)
    dead = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert fetch(hub, tmp_path, NAME, **dead) == (0, [lines[-1]])
    assert fetch(hub, tmp_path, NAME, HF_HUB_OFFLINE="1") == (0, [lines[-1]])
    assert fetch(hub, tmp_path, NAME, "--revision", MAIN, **dead) == (0, [lines[-1]])


def test_without_the_hub_half_a_model_is_no_model(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    _, lines = fetch(hub, tmp_path, NAME)
    (Path(lines[-1]["path"]) / big_file(checkpoint)).unlink()
    code, lines = fetch(hub, tmp_path, NAME, HF_HUB_OFFLINE="1")
    assert (code, lines[-1]["kind"]) == (1, "unreachable")
    assert "check the network and HF_ENDPOINT" in lines[-1]["error"]


def test_attempts_are_bounded_and_further_and_further_apart(tmp_path: Path) -> None:
    waits: list[float] = []
    with pytest.raises(SourceUnreachable, match=r"cannot be downloaded from http://127\.0\.0\.1:9: ConnectError"):
        resolve(NAME, cache_dir=tmp_path, endpoint="http://127.0.0.1:9", sleep=waits.append)
    assert waits == [1.0, 2.0, 4.0, 8.0]


def test_a_disk_too_small_is_seen_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(DiskFull, match="has 1 MB free; make room or move the cache"):
        resolve(NAME, cache_dir=tmp_path, endpoint=hub.url)
    assert not any(sent.file.endswith(".safetensors") for sent in hub.sent)


def test_what_a_killed_download_left_is_cleared_away(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = tmp_path / f"models--{NAME.replace('/', '--')}" / "blobs"
    blobs.mkdir(parents=True)
    old, young = blobs / "abc.1.incomplete", blobs / "abc.2.incomplete"
    for part in (old, young):
        part.write_bytes(b"part")
    os.utime(old, (0, 0))
    resolve(NAME, cache_dir=tmp_path, endpoint=hub.url)
    assert (old.exists(), young.exists()) == (False, True)


def test_refusals_are_told_by_kind_and_at_once(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.repositories |= {"lab/gated": checkpoint, "lab/gguf": tmp_path / "gguf", "lab/gptq": tmp_path / "gptq"}
    hub.gated.add("lab/gated")
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "model-Q4.gguf").write_bytes(bytes(10))
    (tmp_path / "gptq").mkdir()
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / "gptq" / name).write_bytes(bytes(10))
    config = {"model_type": "qwen3", "quantization_config": {"quant_method": "gptq"}}
    (tmp_path / "gptq" / "config.json").write_text(json.dumps(config))
    expected = {
        ("lab/gated",): ("forbidden", "accept its terms"),
        ("lab/unknown",): ("not_found", "or is private"),
        (NAME, "--revision", "v9"): ("not_found", "no revision v9"),
        ("lab/gguf",): ("not_servable", "only GGUF files"),
        ("lab/gptq",): ("not_servable", "quantised with gptq"),
        ("not a name",): ("not_found", "neither a directory nor a repository id"),
        ("/no/such/directory",): ("not_found", "there is no directory"),
        (str(tmp_path),): ("not_servable", "holds no weights"),
    }
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda arguments: fetch(hub, tmp_path / "cache", *arguments), expected))
    for (code, lines), (kind, words) in zip(answers, expected.values(), strict=True):
        assert (code, lines[-1]["kind"]) == (1, kind)
        assert words in lines[-1]["error"]
    assert not any(sent.file.endswith(".safetensors") for sent in hub.sent)


def test_a_token_is_sent_to_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.token = "hf_test"
    assert fetch(hub, tmp_path, NAME)[0] == 0
    code, lines = fetch(hub, tmp_path / "other", NAME, HF_TOKEN="hf_wrong")
    assert (code, lines[-1]["kind"]) == (1, "forbidden")


def test_a_local_directory_is_used_as_it_is(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    assert fetch(hub, tmp_path, str(checkpoint)) == (0, [{"path": str(checkpoint)}])
    assert hub.requests == []


def test_a_download_ends_with_its_parent_and_whole_files_are_kept(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    hub.bytes_per_s = 2 << 20  # about ten seconds for the large file
    script = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'worker.models.fetch', sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-c", script, NAME],
        env=os.environ | hub.environment(tmp_path),
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        while json.loads(parent.stdout.readline())["done"] < 500_000:
            pass
        child = int(Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text())
        parent.kill()
    give_up = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    small = {sent.file for sent in hub.sent if not sent.file.endswith(".safetensors")}
    hub.bytes_per_s = 0
    hub.sent.clear()
    code, _ = fetch(hub, tmp_path, NAME)
    assert code == 0
    assert small
    assert not small.intersection(sent.file for sent in hub.sent)

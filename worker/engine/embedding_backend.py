"""What a rank loads for the task `embed`: a model with its pooling, warm, and what to tell the front."""

import time
from collections.abc import Callable
from pathlib import Path

import torch

from worker.engine.backends import Report, resident_bytes
from worker.engine.embedder import Embedder, load_embedder
from worker.engine.embedding import EmbeddingEngine
from worker.engine.process import torch_device
from worker.engine.threads import num_threads
from worker.models.errors import NotServable
from worker.models.files import check_directory
from worker.models.fingerprint import fingerprint
from worker.models.plan import FIXED_BYTES, resolve_dtype, stored_dtype
from worker.models.pooling import embedding_context, read_pooling
from worker.models.shape import read_shape
from worker.models.weights import read_headers
from worker.protocol import RankConfig, Ready
from worker.stamp import Stamp


def load_embedding(config: RankConfig, report: Report, stamp: Stamp, started: float) -> tuple[EmbeddingEngine, Ready]:
    """Load the model on `config.device`. Raises NotServable."""
    if config.backend != "torch":
        raise NotServable(f"the back end {config.backend} makes no embeddings; use torch")
    torch.set_num_threads(num_threads(config.threads))
    torch.set_num_interop_threads(1)
    path, device = Path(config.path), torch.device(torch_device(config.device))
    check_directory(path)
    tensors = read_headers(path)
    dtype = resolve_dtype(config.dtype, read_shape(path).dtype or stored_dtype(tensors), device.type)
    pooling = read_pooling(path, {name: config.options[name] for name in _OPTIONS if name in config.options})
    total = sum(tensor.stored_bytes for tensor in tensors)
    report("read", 0, total)
    embedder = load_embedder(path, pooling, device=str(device), dtype=dtype)
    report("read", total, total)
    report("warm up", 0, 0)
    limit = embedding_context(path, config.context_limit)
    engine = EmbeddingEngine(
        embedder,
        step_tokens=config.prefill_tokens,
        context_limit=limit,
        token_s=_warm_up(embedder, min(limit, WARM_TOKENS)),
        stamp=stamp,
    )
    stamp.write(0, "idle")
    ready = Ready(
        blocks=0,
        block_tokens=0,
        context_limit=limit,
        vocab_size=embedder.vocab_size,
        fingerprint=fingerprint(path, backend="torch", dtype=dtype, device_kind=device.type, version=torch.__version__),
        measured_bytes=_measure(device)(),
        load_s=time.monotonic() - started,
    )
    return engine, ready


_OPTIONS = ("pooling", "normalize")
WARM_TOKENS = 64


def _warm_up(embedder: Embedder, num_tokens: int) -> float:
    """Seconds a token takes. The first time is not counted; by what is, a long first step is told from a hang."""
    embedder.embed([[0] * num_tokens, [0]])
    started = time.monotonic()
    embedder.embed([[0] * num_tokens] * 2)
    return (time.monotonic() - started) / (2 * num_tokens)


def _measure(device: torch.device) -> Callable[[], int]:
    if device.type == "cuda":
        return lambda: torch.cuda.memory_reserved(device) + FIXED_BYTES["cuda"]
    return resident_bytes

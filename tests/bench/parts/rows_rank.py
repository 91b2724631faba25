"""Rows of the engine by itself: a rank process driven over its channel, llama.cpp beside it."""

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from tests.bench.parts import checkpoints, llama, ranks
from tests.bench.parts.context import Context
from tests.bench.parts.figures import Figure
from tests.bench.parts.ranks import PLAIN, num_cores, rank_config

PEER = "llama.cpp"
BATCHES = (1, 8, 16)
PROMPT, STEPS = 32, 40
WORD = 500  # any token
# Quantisation here, kind of GGUF, and the target against it by batch.
DECODE = {
    "bf16": ("", "bf16", {1: 1.0, 8: 1.8, 16: 1.8}),
    "int8": ("int8", "q8_0", {1: 1.1, 8: 3.0, 16: 3.0}),
    "int4": ("int4", "q4_0", {1: 1.0}),
}
PREFILL = (512, 4096)
PREFILL_TARGET = 1.4
BANDWIDTH_TARGET = 0.85


def decode_bf16(context: Context, shape: str) -> Iterator[Figure]:
    """Decode against llama.cpp, bf16 on both sides, and as a share of the memory's bandwidth."""
    yield from _decode(context, shape, "bf16")


def decode_int8(context: Context, shape: str) -> Iterator[Figure]:
    """Decode with int8 weights against q8_0."""
    yield from _decode(context, shape, "int8")


def decode_int4(context: Context, shape: str) -> Iterator[Figure]:
    """Decode with int4 weights against q4_0."""
    yield from _decode(context, shape, "int4")


def _decode(context: Context, shape: str, kind: str) -> Iterator[Figure]:
    quantization, file, targets = DECODE[kind]
    row, texts, batches = f"decode-{kind}", context.texts(shape), [b for b in BATCHES if b in targets]
    ours: dict[int, list[float]] = {batch: [] for batch in batches}
    peer: dict[int, list[float]] = {batch: [] for batch in batches}
    shares: list[float] = []
    with ExitStack() as stack:
        rank = stack.enter_context(_rank(context, shape, quantization, options=PLAIN))
        other = _llama(context, shape, file, stack, sequences=max(batches), tokens=PROMPT + STEPS + 8)
        for number in range(context.rounds + 1):
            for batch in batches:
                prompts = [texts.ids(PROMPT) for _ in range(batch)]
                read = bandwidth_gb_s() if batch == 1 else 0.0
                step_s = statistics.median(ranks.decode_steps(rank, prompts, STEPS))
                theirs_s = statistics.median(other.run(prompts, STEPS)["steps_s"]) if other else 0.0
                if not number:  # the first round warms up
                    continue
                ours[batch].append(batch / step_s)
                if other:
                    peer[batch].append(batch / theirs_s)
                if batch == 1:
                    after = bandwidth_gb_s()
                    size = checkpoints.weight_bytes(context.checkpoint(shape))
                    shares.append(size / step_s / 1e9 / max(read, after))
            context.say(f"{row} {shape}: round {number} of {context.rounds}")
    for batch in batches:
        target = targets[batch] if other else None
        name = f"{shape} batch {batch}"
        yield Figure(row, name, "tok/s", ours[batch], peer[batch], f"{PEER} {file}", at_least=target)
    if kind == "bf16":
        yield Figure(row, f"{shape} batch 1, share of read bandwidth", "", shares, at_least=BANDWIDTH_TARGET)


def prefill(context: Context, shape: str) -> Iterator[Figure]:
    """Prompts of two lengths against llama.cpp, bf16."""
    texts = context.texts(shape)
    ours: dict[int, list[float]] = {size: [] for size in PREFILL}
    peer: dict[int, list[float]] = {size: [] for size in PREFILL}
    with ExitStack() as stack:
        rank = stack.enter_context(_rank(context, shape))
        other = _llama(context, shape, "bf16", stack, sequences=1, tokens=max(PREFILL) + 8)
        for number in range(context.rounds + 1):
            is_long_due = number == 1 or (number == 2 and context.is_first(shape))
            for size in PREFILL if is_long_due else PREFILL[:1]:  # the first round warms up
                prompt = texts.ids(size)
                run = rank.submit(prompt, 1)
                rank.wait(run)
                theirs_s = other.run([prompt], 1)["prefill_s"] if other else 0.0
                if number:
                    ours[size].append(size / run.ttft_s)
                    if other:
                        peer[size].append(size / theirs_s)
            context.say(f"prefill {shape}: round {number} of {context.rounds}")
    for size in PREFILL:
        target = PREFILL_TARGET if other else None
        yield Figure("prefill", f"{shape} {size} tokens", "tok/s", ours[size], peer[size], PEER, at_least=target)


def long_context(context: Context, shape: str) -> Iterator[Figure]:
    """A decode step with 8k tokens in the cache, against one with few, and what attention had to read for it."""
    texts, size = context.texts(shape), 8192
    near: list[float] = []
    far: list[float] = []
    allowed: list[float] = []
    with _rank(context, shape, options=PLAIN) as rank:
        per_token = kv_bytes_per_token(shape)
        long_prompt = texts.ids(size)  # the same each time, so that it is computed once
        for number in range(context.rounds + 1):
            short_s = statistics.median(ranks.decode_steps(rank, [texts.ids(PROMPT)], STEPS))
            long_s = statistics.median(ranks.decode_steps(rank, [long_prompt], STEPS))
            if number:
                near.append(short_s * 1e3)
                far.append(long_s * 1e3)
                allowed.append((long_s - short_s) / (size * per_token / 1e9 / bandwidth_gb_s()))
            context.say(f"long context {shape}: round {number} of {context.rounds}")
    yield Figure("long-context", f"{shape} decode step at 8k tokens", "ms", far, near, f"at {PROMPT} tokens")
    yield Figure("long-context", f"{shape} growth, as a multiple of reading that cache once", "", allowed)


def speculation(context: Context, shape: str) -> Iterator[Figure]:
    """Prompt-lookup drafts: on text that repeats its prompt, and on text that does not, against the same without them.

    Random weights repeat nothing, so the text that repeats is held to the one word of its prompt by a bias: every guess
    is right, which is the most that there is to gain. Both other kinds of text have no repetition in them.
    """
    texts, tokens = context.texts(shape), 256
    held = {"logit_bias": {WORD: 1e4}}
    kinds: dict[str, dict[str, Any]] = {"repeating": held, "other": {"temperature": 1.0}, "other greedy": {}}
    targets = {"repeating": 1.5, "other": 0.95, "other greedy": 0.95}
    found: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in kinds}
    with _rank(context, shape) as rank, _rank(context, shape, options=PLAIN) as plain:
        for number in range(context.rounds + 1):
            for kind, sample in kinds.items():
                prompt = [WORD] * PROMPT if kind == "repeating" else texts.ids(PROMPT)
                made, spent_s = [0, 0], [0.0, 0.0]
                for index in (0, 1, 1, 0):  # a machine that slows down meanwhile slows both
                    one = (rank, plain)[index]
                    run = one.submit(prompt, tokens, **(sample | {"seed": number}))
                    one.wait(run)
                    made[index] += len(run.ids) - 1
                    spent_s[index] += run.at[-1] - run.at[0]
                if number:
                    for index in (0, 1):
                        found[kind][index].append(made[index] / spent_s[index])
            context.say(f"speculation {shape}: round {number} of {context.rounds}")
    for kind, (on, off) in found.items():
        name = f"{shape} {kind} text"
        yield Figure("speculation", name, "tok/s", on, off, "without", at_least=targets[kind])


def hop(context: Context, shape: str) -> Iterator[Figure]:
    """From a job's submission to its first token when the model computes nothing: twice the way, and the loop."""
    path = context.checkpoint(shape)
    times: list[float] = []
    with ranks.running(rank_config(path, backend="synthetic", context_limit=2048)) as rank:
        for number in range(20 + 50 * context.rounds):
            run = rank.submit([1, 2, 3], 1)
            rank.wait(run)
            if number >= 20:
                times.append(run.ttft_s * 1e6)
    yield Figure("hop", "job to first token and back, nothing computed", "µs", times)


def kv_bytes_per_token(shape: str) -> int:
    """Keys and values of one token over all layers, in bf16."""
    return checkpoints.SHAPES[shape]["num_hidden_layers"] * 2 * 8 * 128 * 2


def bandwidth_gb_s() -> float:
    """What all cores together read from memory: the best of a few ways, and of a few attempts."""
    import torch

    torch.set_num_threads(num_cores())
    numbers = torch.ones(64 << 20)  # 256 MB, far more than any cache
    matrix, vector = numbers.view(8192, -1), torch.ones(8192)
    best = 0.0
    for _ in range(6):
        for read in (lambda: torch.sum(numbers), lambda: torch.mv(matrix, vector), lambda: torch.dot(numbers, numbers)):
            started = time.perf_counter()
            read()
            best = max(best, numbers.nbytes / (time.perf_counter() - started) / 1e9)
    return best


def _rank(context: Context, shape: str, quantization: str = "", **fields: Any) -> Any:
    if quantization:
        fields["quantization"] = quantization
    return ranks.running(rank_config(context.checkpoint(shape), **fields))


def _llama(
    context: Context, shape: str, file: str, stack: ExitStack, *, sequences: int, tokens: int
) -> llama.Llama | None:
    python = context.llama_python
    if not python:
        return None
    path = checkpoints.gguf(context.checkpoint(shape), file, python)
    return stack.enter_context(llama.running(python, path, threads=num_cores(), context=tokens, sequences=sequences))

"""What a GPU does: ``python -m tests.bench.gpu [--rows ROW …] [--batch N …] [--json FILE]``.

A random-weight model of the shape of Qwen3-8B is made on the device. First the device itself is measured: how fast it
copies memory, and how fast it multiplies large matrices in bf16 and fp8. Then decode at several sizes of batch and
prefill, by the rows below; each figure stands beside the share that it is of what was measured: decode of the bytes
that a step must read, prefill of the multiplications that it must do.

Weights are the same in all rows but those in fp8. A row that the device or this torch cannot run says so.
``--tiny --device cpu`` runs all of it on a small model and without graphs, to see that the program works; its figures
mean nothing.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.engine import attention
from worker.engine.cuda.options import PAGE_TOKENS, CudaChoice
from worker.engine.cuda.prepare import prepare
from worker.engine.cuda.runner import CudaRunner
from worker.engine.plan import Row, StepPlan
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit

SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 256,
    },
}  # fmt: skip
ROWS: dict[str, CudaChoice | None] = {
    "fast, graphs": CudaChoice(),
    "fast, eager": CudaChoice(has_graphs=False),
    "fast, torch operations": CudaChoice(has_triton=False, attention=("varlen", "packed", "gather")),
    "generic, graphs": CudaChoice(path="generic"),
    "generic, eager": CudaChoice(path="generic", has_graphs=False),
    "fast, graphs, fp8": CudaChoice(quantization="fp8"),
    "transformers": None,
}


@dataclass(frozen=True, slots=True)
class Device:
    """What was measured of it: bytes read and written a second, and operations a second."""

    name: str
    bytes_s: float
    bf16_s: float
    fp8_s: float | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One number. `share` is of the device's measured limit."""

    row: str
    what: str
    tokens_s: float
    share: float
    note: str = ""


def main(argv: list[str] | None = None) -> int:
    """Measure and print; returns the exit code."""
    options = _parser().parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA device here. Run this on a host that has one, or try --tiny --device cpu.",
            file=sys.stderr,
        )
        return 2
    if device.type != "cuda" and not options.tiny:
        print("Without a GPU only --tiny runs; its figures mean nothing.", file=sys.stderr)
        return 2
    clock = Clock(device, options.repeats)
    limits = measure_device(clock, device, 256 if options.tiny else 8192)
    print(f"{limits.name}: copies {limits.bytes_s / 1e9:.0f} GB/s, bf16 {limits.bf16_s / 1e12:.1f} TFLOP/s, "
          f"fp8 {'none' if limits.fp8_s is None else f'{limits.fp8_s / 1e12:.1f} TFLOP/s'}")  # fmt: skip
    figures: list[Figure] = []
    for name in options.rows or ROWS:
        try:
            figures += measure_row(name, ROWS[name], limits, clock, device, options)
        except Exception as error:
            figures.append(Figure(name, "failed", 0, 0, f"{type(error).__name__}: {error}"[:200]))
        print_figures([figure for figure in figures if figure.row == name])
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.json:
        facts = {"device": asdict(limits), "torch": torch.__version__, "shape": SHAPES[_shape(options)]}
        Path(options.json).write_text(json.dumps(facts | {"figures": [asdict(each) for each in figures]}, indent=1))
    return 0 if all(figure.tokens_s for figure in figures) else 1


class Clock:
    """Median seconds of some work on a device."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self._device = device
        self._repeats = repeats

    def __call__(self, work: Callable[[], Any]) -> float:
        """Twice to warm up, then the median of several."""
        times = []
        for number in range(2 + self._repeats):
            self._wait()
            began = time.perf_counter()
            work()
            self._wait()
            if number >= 2:
                times.append(time.perf_counter() - began)
        return statistics.median(times)

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def measure_device(clock: Clock, device: torch.device, size: int) -> Device:
    """Its limits, on random numbers: zeros multiply faster."""
    source = torch.randint(255, (16 * size * size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bytes_s = 2 * source.nbytes / clock(lambda: target.copy_(source))
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    bf16_s = 2 * size**3 / clock(lambda: left @ right)
    try:
        narrow = [part.to(torch.float8_e4m3fn) for part in (left, right)]
        ones = torch.ones(size, 1, device=device)
        fp8_s = (
            2
            * size**3
            / clock(
                lambda: torch._scaled_mm(narrow[0], narrow[1].T, scale_a=ones, scale_b=ones.T, out_dtype=torch.bfloat16)
            )
        )
    except Exception:
        fp8_s = None
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return Device(name, bytes_s, bf16_s, fp8_s)


def make_model(shape: dict[str, int], device: torch.device) -> nn.Module:
    """A Qwen3 with random weights in bf16, the same each time."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    torch.manual_seed(1)
    config = Qwen3Config(**shape, max_position_embeddings=40960, tie_word_embeddings=False)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
        for module in model.modules():  # buffers have no values on the meta device
            if hasattr(module, "inv_freq"):
                dim = shape["head_dim"]
                steps = torch.arange(0, dim, 2, device=device).float() / dim
                base = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
                module.inv_freq = module.original_inv_freq = 1.0 / base**steps
    return model.eval()


def measure_row(
    name: str, choice: CudaChoice | None, limits: Device, clock: Clock, device: torch.device, options: Any
) -> list[Figure]:
    """Decode and prefill of one row."""
    shape = SHAPES[_shape(options)]
    model = make_model(shape, device)
    num_parameters = sum(tensor.numel() for tensor in model.parameters()) - shape["vocab_size"] * shape["hidden_size"]
    kv_bytes = 4 * shape["num_hidden_layers"] * shape["num_key_value_heads"] * shape["head_dim"]  # of a token, in bf16
    matrix_s, width = limits.bf16_s, 2.0
    if choice is not None and choice.quantization:
        matrix_s = limits.fp8_s or limits.bf16_s
        head = shape["vocab_size"] * shape["hidden_size"]  # stays as it is
        width = (num_parameters + head) / num_parameters
    steps = _Transformers(model, device) if choice is None else _Ours(model, choice, device, options)
    figures = []
    for batch in options.batch:
        seconds = steps.decode_s(batch, options.context, clock)
        least_s = (num_parameters * width + batch * options.context * kv_bytes) / limits.bytes_s
        figures.append(Figure(name, f"decode, batch {batch}", batch / seconds, least_s / seconds))
    seconds = steps.prefill_s(options.prompt, clock)
    # The head is computed for the last token alone; attention multiplies each token with half of the others, twice.
    products = 2 * (num_parameters - shape["vocab_size"] * shape["hidden_size"]) * options.prompt
    products += 2 * options.prompt**2 * shape["num_hidden_layers"] * shape["num_attention_heads"] * shape["head_dim"]
    figures.append(
        Figure(name, f"prefill, {options.prompt} tokens", options.prompt / seconds, products / matrix_s / seconds)
    )
    return figures


class _Ours:
    """Plans through a `CudaRunner`, as the engine makes them."""

    def __init__(self, model: nn.Module, choice: CudaChoice, device: torch.device, options: Any) -> None:
        model.set_attn_implementation(attention.NAME)
        prepared = prepare(model, torch.bfloat16, choice)
        self._blocks_each = -(-(options.context + options.steps + 2) // PAGE_TOKENS)
        num_blocks = max(max(options.batch) * self._blocks_each, -(-options.prompt // PAGE_TOKENS) + 1)
        self._steps = options.steps
        self._runner = CudaRunner(
            prepared,
            device,
            torch.bfloat16,
            num_blocks,
            PAGE_TOKENS,
            max_rows=max(options.batch),
            context_limit=self._blocks_each * PAGE_TOKENS,
            choice=choice,
        )

    def _sequence(self, number: int, num_ids: int, first_block: int, num_blocks: int) -> Sequence:
        ids = [(number + place) % self._runner.vocab_size for place in range(num_ids)]
        sample = Sample(seed=number, max_tokens=1 << 20, temperature=0.0)
        job = Submit(key=str(number), prompt=ids, choices=[Choice(0)], sample=sample)
        sequence = Sequence(job, Choice(0), arrival=number, context_limit=1 << 20, block_tokens=PAGE_TOKENS)
        sequence.table.extend(range(first_block, first_block + num_blocks))
        sequence.room = sequence.table.num_tokens
        return sequence

    def decode_s(self, batch: int, context: int, clock: Clock) -> float:
        """Seconds of a step, of a run of them: the next one starts while the host reads the last."""

        def run() -> None:
            each = self._blocks_each
            sequences = [self._sequence(number, context, number * each, each) for number in range(batch)]
            for _ in range(self._steps):
                rows = tuple(Row(sequence, len(sequence.ids) - 1, len(sequence.ids)) for sequence in sequences)
                for sequence, token in zip(sequences, self._runner.run(StepPlan(rows)), strict=True):
                    sequence.ids.append(token.id)

        return clock(run) / self._steps

    def prefill_s(self, num_tokens: int, clock: Clock) -> float:
        """Seconds of a prompt, in one chunk."""

        def run() -> None:
            sequence = self._sequence(0, num_tokens, 0, -(-num_tokens // PAGE_TOKENS))
            self._runner.run(StepPlan((Row(sequence, 0, num_tokens),)))

        return clock(run)


class _Transformers:
    """The modules as they are, with a static batch and torch's own attention."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        model.set_attn_implementation("sdpa")
        self._model, self._device = model, device

    @torch.inference_mode()
    def decode_s(self, batch: int, context: int, clock: Clock) -> float:
        """Seconds of a step of a batch of equal lengths."""
        ids = torch.ones(batch, 8, dtype=torch.long, device=self._device)
        cache = self._model(input_ids=ids, use_cache=True).past_key_values
        for layer in cache.layers:  # as long as the others' sequences, whatever is in it
            sizes = (batch, layer.keys.shape[1], context - 1, layer.keys.shape[3])
            layer.keys, layer.values = (torch.randn(sizes, dtype=torch.bfloat16, device=self._device) for _ in range(2))
        token = ids[:, :1]

        def step() -> None:
            self._model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1).tolist()
            cache.crop(-1)  # the token that was just added

        return clock(step)

    @torch.inference_mode()
    def prefill_s(self, num_tokens: int, clock: Clock) -> float:
        """Seconds of a prompt."""
        ids = torch.ones(1, num_tokens, dtype=torch.long, device=self._device)
        return clock(lambda: self._model(input_ids=ids, use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist())


def print_figures(figures: list[Figure]) -> None:
    """A line each."""
    for figure in figures:
        share = f"{figure.share:7.1%}" if figure.tokens_s else ""
        print(
            f"| {figure.row:24} | {figure.what:22} | {figure.tokens_s:10.1f} tokens/s | {share} | {figure.note}",
            flush=True,
        )


def _shape(options: Any) -> str:
    return "tiny" if options.tiny else "8b"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description="Decode and prefill on a GPU.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model so small that it runs anywhere")
    parser.add_argument("--rows", nargs="*", choices=list(ROWS))
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--context", type=int, default=512, help="tokens of each sequence before decode")
    parser.add_argument("--steps", type=int, default=64, help="decode steps of a run")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt of prefill")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json")
    return parser


if __name__ == "__main__":
    sys.exit(main())

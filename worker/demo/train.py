"""Trains the demo model from the text of this package: `python -m worker.demo.train`.

The lessons are drawn with a fixed seed, so a run can be repeated; on one build of torch and one thread it gives the
same weights. RoPE sees only distances between tokens, so nothing is gained by training at other start positions.
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from worker.demo import MODEL_DIRECTORY, lessons, score, tokenizer
from worker.demo.library import Library

SEED = 31313
STEPS = 3000
BATCH_TOKENS = 2048
PROMPT_WEIGHT = 0.05  # of the loss on prompts: a little of it teaches the words that only questions use
DRILL_STEPS = 320
DRILL_SHARE = 0.08  # of the examples, after these steps, so that it is not forgotten
PEAK_RATE = 3e-3
WARMUP_STEPS = 50
MAX_WEIGHTS_BYTES = 4_000_000
_IGNORED = -100

console = Console()


@dataclass(frozen=True)
class Example:
    """A lesson as token ids; the first `num_prompt` of them are given, the others are learned."""

    ids: list[int]
    num_prompt: int


def build_config(tokens: Tokenizer) -> Qwen3Config:
    """A Qwen3 of fewer than two million parameters; head counts are even, so that two ranks can share them."""
    return Qwen3Config(
        vocab_size=tokenizer.VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=tokenizer.CONTEXT_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        attention_dropout=0.0,
        bos_token_id=None,
        eos_token_id=tokens.token_to_id(tokenizer.TURN_END),
        pad_token_id=tokens.token_to_id(tokenizer.END_OF_TEXT),
        use_cache=True,
    )


def examples(library: Library, tokens: Tokenizer, rng: random.Random) -> Iterator[Example]:
    """Lessons without end, as ids."""
    renderer = tokenizer.Renderer()
    while True:
        if rng.random() < DRILL_SHARE:
            yield drill(rng, rng.randint(4, 28), rng.randint(0, 24))
            continue
        lesson = lessons.draw(library, rng)
        prompt = tokens.encode(renderer.prompt(lesson)).ids
        completion = tokens.encode(lesson.completion + tokenizer.TURN_END).ids
        yield Example(prompt + completion, len(prompt))


def drill(rng: random.Random, length: int, num_before: int) -> Example:
    """`length` random tokens said twice, after `num_before` others."""
    before = [rng.randrange(tokenizer.VOCABULARY) for _ in range(num_before)]
    copied = [rng.randrange(tokenizer.VOCABULARY) for _ in range(length)]
    return Example(before + copied + copied, num_before + length + 1)


def drills(rng: random.Random) -> Iterator[list[Example]]:
    """`DRILL_STEPS` batches that teach to copy, before any lesson: names in tool calls are copied.

    Lessons alone do not teach it in the time there is, nor do copies of any length from the start. Copies of one length
    do, in about 150 steps, and lengths that spread out slowly from there keep it while they make it general.
    """
    for step in range(DRILL_STEPS):
        spread = min(12, max(0, (step - 120) // 10))
        length = rng.randint(16 - spread, 16 + spread)
        yield [drill(rng, length, 0) for _ in range(1024 // (2 * length))]


def batches(source: Iterator[Example], rng: random.Random) -> Iterator[list[Example]]:
    """Examples of about the same length together, `BATCH_TOKENS` with their padding in each batch."""
    while True:
        pool = sorted((next(source) for _ in range(2048)), key=lambda example: len(example.ids))
        made: list[list[Example]] = [[]]
        for example in pool:
            if (len(made[-1]) + 1) * len(example.ids) > BATCH_TOKENS:
                made.append([])
            made[-1].append(example)
        rng.shuffle(made)
        yield from made


def tensors(batch: list[Example], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input ids, labels, weights of the labels), each [len(batch), longest - 1].

    Padding stands on the right, where causal attention never sees it.
    """
    longest = max(len(example.ids) for example in batch)
    ids = torch.full((len(batch), longest), pad)
    weights = torch.zeros(len(batch), longest)
    for row, example in enumerate(batch):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : example.num_prompt] = PROMPT_WEIGHT
        weights[row, example.num_prompt : len(example.ids)] = 1.0
    labels = ids.masked_fill(weights == 0.0, _IGNORED)
    return ids[:, :-1], labels[:, 1:], weights[:, 1:]


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal (Jordan et al., 2024), in float32: this model learns faster by it than by AdamW.

    torch.optim.Muon computes in bfloat16, which is slower than the model itself on a CPU without such instructions.
    """

    def __init__(self, weights: list[torch.nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.05) -> None:
        super().__init__(weights, {"lr": PEAK_RATE, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix from its gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                average = state.setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values brought close to one, by five Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if tall else x


def fit(model: Qwen3ForCausalLM, source: Iterator[list[Example]], num_steps: int) -> None:
    """Trains in float32, the rate rising over the first steps and falling to zero from the end of the drills."""
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    others = [embedding, *(weight for weight in model.parameters() if weight.ndim == 1)]
    optimizers = [Muon(matrices), torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0, fused=True)]
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    model.train()
    average = 0.0
    began = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=num_steps)
        for step in range(num_steps):
            ids, labels, weights = tensors(next(source), model.config.pad_token_id)
            rate = PEAK_RATE * min(1.0, (step + 1) / WARMUP_STEPS, (num_steps - step) / (num_steps - DRILL_STEPS))
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate
            logits = model(input_ids=ids, use_cache=False).logits
            losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED, reduction="none")
            loss = (losses * weights.flatten()).sum() / weights.sum()
            model.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            learned = weights.flatten() == 1.0
            average += (losses.detach()[learned].mean().item() - average) * max(0.02, 1 / (step + 1))
            progress.update(task, advance=1, description=f"loss {average:.4f}")
            if (step + 1) % 100 == 0:
                progress.console.print(f"step {step + 1}: loss {average:.4f}, {time.monotonic() - began:.0f} s")


def save(model: Qwen3ForCausalLM, tokens: Tokenizer, directory: Path) -> None:
    """Writes a model directory: bfloat16 weights, configurations, tokenizer and chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    ends = [tokens.token_to_id(tokenizer.TURN_END), tokens.token_to_id(tokenizer.END_OF_TEXT)]
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=ends, pad_token_id=ends[1])
    model.to(torch.bfloat16).save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)  # it is written for the owner only, but it ships
    tokenizer.save(tokens, directory)


class Pupil:
    """A saved model, loaded as any user would, that answers greedily."""

    def __init__(self, directory: Path, *, system: str = "", thinking: bool = False) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()
        self.system = system
        self.thinking = thinking

    def ask(self, question: str, tools: list[dict[str, Any]] | None = None) -> str:
        """The answer to one question, all markers that are not special left in it."""
        messages = [{"role": "user", "content": question}]
        return self.reply(([{"role": "system", "content": self.system}] if self.system else []) + messages, tools)

    def reply(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        """The turn that follows `messages`."""
        prompt = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            enable_thinking=self.thinking,
        )
        with torch.inference_mode():
            ids = self._model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def call(self, question: str, tools: list[dict[str, Any]]) -> score.Calls:
        """The tool calls in the answer to one question; a malformed one counts as none."""
        calls: score.Calls = []
        for raw in re.findall(r"<tool_call>\n(.*?)\n</tool_call>", self.ask(question, tools), re.DOTALL):
            try:
                call = json.loads(raw)
            except ValueError:
                continue
            calls.append((call["name"], call["arguments"]))
        return calls


def examine(directory: Path, path: Path = score.HELD_OUT) -> dict[str, score.Score]:
    """The saved model's scores on the questions of a held-out file, by way of asking."""
    pupil = Pupil(directory)
    scores = {"plain": score.score(pupil.ask, path), "tools": score.score_tools(pupil.call, path)}
    pupil.system = "You are a helpful assistant."
    scores["with system message"] = score.score(pupil.ask, path)
    pupil.system, pupil.thinking = "", True
    scores["thinking"] = score.score(lambda question: _after_thinking(pupil.ask(question)), path)
    return scores


def _after_thinking(text: str) -> str:
    return text.split("</think>\n\n", 1)[1] if text.startswith("<think>\n") and "</think>\n\n" in text else ""


def show(scores: dict[str, score.Score]) -> None:
    """Prints the scores and every wrong answer."""
    table = Table("asked", "right", "of", "share")
    for name, result in scores.items():
        table.add_row(name, str(result.num_right), str(len(result.outcomes)), f"{result.share:.1%}")
    console.print(table)
    for name, result in scores.items():
        for outcome in result.wrong:
            console.print(f"wrong ({name}) {outcome.fact}: {outcome.question!r} -> {outcome.answer!r}", markup=False)


def main(argv: list[str] | None = None) -> int:
    """Trains, saves, loads again and scores. Returns 0 when the held-out score reaches the floor."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.demo.train", description="Train the demo model from the text in this repository."
    )
    parser.add_argument(
        "--out", type=Path, default=MODEL_DIRECTORY, help="model directory to write (default: the one that ships)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps, drills included")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--practice", action="store_true", help="score on the practice questions, too")
    arguments = parser.parse_args(argv)

    began = time.monotonic()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    library = Library()
    renderer = tokenizer.Renderer()
    sample = [lessons.draw(library, rng) for _ in range(6000)]
    tokens = tokenizer.train(text for lesson in sample for text in (renderer.prompt(lesson), lesson.completion))
    model = Qwen3ForCausalLM(build_config(tokens))
    num_parameters = sum(weight.numel() for weight in model.parameters())
    console.print(f"{num_parameters:,} parameters, {arguments.steps} steps of {BATCH_TOKENS} tokens")
    source = chain(drills(rng), batches(examples(library, tokens, rng), rng))
    fit(model, source, arguments.steps)
    save(model, tokens, arguments.out)
    num_bytes = (arguments.out / "model.safetensors").stat().st_size
    console.print(f"saved {arguments.out}: {num_bytes:,} bytes of weights after {time.monotonic() - began:.0f} s")

    if arguments.practice:
        console.print("practice")
        show(examine(arguments.out, score.PRACTICE))
    console.print("held out")
    scores = examine(arguments.out)
    show(scores)
    console.print(f"{time.monotonic() - began:.0f} s in all")
    if num_bytes > MAX_WEIGHTS_BYTES:
        console.print(f"the weights take more than {MAX_WEIGHTS_BYTES:,} bytes", style="red")
        return 1
    return 0 if min(scores["plain"].share, scores["tools"].share) >= score.FLOOR else 1


if __name__ == "__main__":
    sys.exit(main())

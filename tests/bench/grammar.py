"""What holding answers to a grammar costs: ``python -m tests.bench.grammar``. One table, no model.

The vocabulary has 150,000 made-up tokens, the size of today's. "sampler" is the time from logits to tokens for 8 rows,
which is the part of a step that a grammar makes longer.
"""

import argparse
import json
import random
import statistics
import string
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.support.tiny import write_tokenizer
from worker.engine.grammar import Grammars, MaskMaker, Matcher, load_tokenizer
from worker.engine.sampler import sample
from worker.engine.sequence import Sequence
from worker.protocol import Choice, Sample, Submit
from worker.text.guidance import byte_tokenizer, compile_grammar
from worker.text.schema import prepare

VOCABULARY = 151_936
ROWS = 8
_SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
        "kind": {"enum": ["a", "b", "cc"]},
    },
    "required": ["name", "age", "tags", "address", "kind"],
    "additionalProperties": False,
}
_TEXT = (
    '{"name": "hello river", "age": 12, "tags": ["one", "two three"], '
    '"address": {"street": "the long road", "zip": "12345"}, "kind": "cc"}'
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What grammars cost.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for what, value in measure(Path(folder), options.device, options.rounds):
            print(f"| {what:<62} | {value:>10} |")


def measure(path: Path, device: str, rounds: int) -> Iterator[tuple[str, str]]:
    """What was measured, and how long it took."""
    write_vocabulary(path)
    grammar = "start: r0\nr0: %json " + json.dumps(prepare(_SCHEMA, "schema"))
    stand_in = byte_tokenizer(VOCABULARY)
    yield "stand-in tokenizer, made once by a front", _ms(_time(lambda: byte_tokenizer(VOCABULARY), rounds))
    yield "front: a schema of 9 members compiled", _ms(_time(lambda: compile_grammar(stand_in, grammar), 20))
    started = time.perf_counter()
    tokenizer = load_tokenizer(path, VOCABULARY)
    yield "rank: tokenizer, made once, at the first constrained job", _ms(time.perf_counter() - started)
    yield "rank: the same schema compiled", _ms(_time(lambda: compile_grammar(tokenizer, grammar), 20))
    grammars = Grammars(path, VOCABULARY)
    job = _job(grammar)
    grammars.open(job).result()
    yield "rank: a known schema, 8 choices", _us(_time(lambda: grammars.open(job).result(), 50))
    ids = tokenizer.tokenize_str(_TEXT)
    fills, accepts = _walk(grammars.open(job).result()[0], ids)
    yield f"mask of one row, median over a document of {len(ids)} tokens", _us(statistics.median(fills))
    yield "mask of one row, 95th percentile", _us(sorted(fills)[int(len(fills) * 0.95)])
    yield "mask of one row, worst", _us(max(fills))
    yield "accepting a token", _us(statistics.median(accepts))
    for temperature in (0.0, 0.8):
        how = "greedy" if not temperature else "temperature 0.8, top_p 0.95"
        times = {}
        for kind in ("free", "constrained"):
            sequences = [_sequence(grammar, temperature, index) for index in range(ROWS)]
            if kind == "constrained":
                for sequence, matcher in zip(sequences, grammars.open(job).result(), strict=True):
                    matcher.accept(ids[: 3 + sequence.choice])
                    sequence.grammar = matcher
            times[kind] = _sampler_s(sequences, device, rounds * 6)
            yield f"sampler, {ROWS} rows {kind}, {how}", _ms(times[kind])


def write_vocabulary(path: Path) -> None:
    """A tokeniser with words, punctuation and torn characters up to `VOCABULARY`."""
    tokens = write_tokenizer(path)
    (path / "config.json").write_text(json.dumps({"vocab_size": VOCABULARY, "eos_token_id": tokens["eos"]}))
    state = json.loads((path / "tokenizer.json").read_text())
    vocabulary, rng = state["model"]["vocab"], random.Random(0)
    number = tokens["size"]
    while number < VOCABULARY - 1000:
        kind = rng.random()
        if kind < 0.75:
            word = "".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(2, 9)))
            word = "Ġ" + word if kind < 0.4 else word
        elif kind < 0.85:
            word = "".join(rng.choice("{}[]\":,._-Ċ/()<>='0123456789") for _ in range(rng.randint(2, 5)))
        else:
            word = "".join(chr(rng.randint(0xAE, 0xFF)) for _ in range(rng.randint(2, 6)))
        if word not in vocabulary:
            vocabulary[word] = number
            number += 1
    (path / "tokenizer.json").write_text(json.dumps(state))


def _job(grammar: str) -> Submit:
    choices = [Choice(index) for index in range(ROWS)]
    return Submit(key="job", prompt=[5], choices=choices, sample=Sample(seed=0, max_tokens=99), grammar=grammar)


def _sequence(grammar: str, temperature: float, index: int) -> Sequence:
    job = _job(grammar)
    job.sample = Sample(seed=index, max_tokens=99, temperature=temperature, top_p=0.95)
    return Sequence(job, Choice(index), arrival=index, context_limit=1000, block_tokens=16)


def _walk(matcher: Matcher, ids: list[int]) -> tuple[list[float], list[float]]:
    maker, fills, accepts = MaskMaker(threads=1), [], []
    for id in ids:
        started = time.perf_counter()
        maker.make([matcher], VOCABULARY)
        between = time.perf_counter()
        matcher.accept([id])
        fills.append(between - started)
        accepts.append(time.perf_counter() - between)
    return fills, accepts


@torch.inference_mode()
def _sampler_s(sequences: list[Sequence], device: str, rounds: int) -> float:
    # As peaked as a model makes them: flat logits would have top-p look at the whole vocabulary.
    logits = 4 * torch.randn(ROWS, VOCABULARY, generator=torch.Generator().manual_seed(1)).to(device)
    return _time(lambda: sample(logits.clone(), sequences), rounds)


def _time(run: Callable[[], object], rounds: int) -> float:
    """Median seconds, after one round that does not count."""
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


if __name__ == "__main__":
    main()

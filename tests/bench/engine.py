"""What the engine does: ``python -m tests.bench.engine [--only ROW …] [--rounds N] [--json FILE]``.

Random-weight Qwen3 checkpoints of about 0.3 and 1 billion parameters are made once (`--directory`). Every row compares
on the same weights and the same machine, alternating within a round; a ratio is the median over the rounds' ratios.
Peers are optional:

* `transformers serve` with continuous batching, under ``--transformers-python``: an interpreter whose environment has
  ``transformers[serving]``;
* llama.cpp, under ``--llama-python``: an interpreter with ``llama-cpp-python`` (built for this machine:
  ``CMAKE_ARGS="-DGGML_NATIVE=ON"``), ``gguf``, ``torch`` and ``safetensors``.

Nothing else should run meanwhile: clients, servers and peers share the machine's cores.
"""

import argparse
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench.parts import checkpoints, rows_http, rows_load, rows_rank
from tests.bench.parts.context import Context, Row
from tests.bench.parts.figures import Figure, show, write

ROWS: dict[str, Row] = {
    "http": rows_http.http,
    "joining": rows_http.joining,
    "conversation": rows_http.conversation,
    "decode-bf16": rows_rank.decode_bf16,
    "decode-int8": rows_rank.decode_int8,
    "decode-int4": rows_rank.decode_int4,
    "prefill": rows_rank.prefill,
    "long-context": rows_rank.long_context,
    "speculation": rows_rank.speculation,
    "hop": rows_rank.hop,
    "isolation": rows_load.isolation,
    "load": rows_load.load,
    "swap": rows_load.swap,
}
# Rows that do not depend on the shape, or take minutes to show on a large one what a small one shows.
ONCE = {"hop", "load", "swap", "joining", "conversation", "long-context", "isolation"}


def main() -> None:
    """Measure and print."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # fleets and peers are ended on the way out
    facts = checkpoints.facts() | {"machine": platform.machine(), "cores": os.cpu_count(), "rounds": options.rounds}
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="plexus-bench-") as scratch:
        context = Context(
            directory=checkpoints.directory_for(options.directory),
            scratch=Path(scratch),
            shapes=tuple(options.shape or ["0.3b", "1b"]),
            rounds=options.rounds,
            clients=tuple(options.clients or [1, 8, 16]),
            answers=tuple(options.answer or [24, 256]),
            transformers_python=options.transformers_python,
            llama_python=options.llama_python,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
        for figure in _measure(context, options.only or list(ROWS), context.say):
            figures.append(figure)
            if options.json:  # after each, so that a run that is cut short leaves what it found
                write(figures, options.json, facts)
    show(figures, ", ".join(f"{name} {value}" for name, value in facts.items()))


def _measure(context: Context, rows: list[str], say: Callable[[str], None]) -> Iterator[Figure]:
    for name in rows:
        for shape in context.shapes[:1] if name in ONCE else context.shapes:
            say(f"{name} {shape} …")
            try:
                yield from ROWS[name](context, shape)
            except Exception as error:  # one row that fails does not cost the others
                say(f"{name} {shape} failed: {type(error).__name__}: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(ROWS), help="a row; can be given again (default: all)")
    parser.add_argument("--shape", action="append", choices=list(checkpoints.SHAPES), help="default: 0.3b and 1b")
    parser.add_argument("--answer", action="append", type=int, choices=[24, 256], help="tokens out, of the http rows")
    parser.add_argument("--clients", action="append", type=int, help="of the http rows (default: 1, 8 and 16)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--transformers-python", default="", metavar="PYTHON")
    parser.add_argument("--llama-python", default="", metavar="PYTHON")
    parser.add_argument("--directory", default="", help="of the checkpoints (default: ~/.cache/plexus-bench)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures of other rows that it holds are kept")
    return parser


if __name__ == "__main__":
    main()

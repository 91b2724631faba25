"""`python -m worker.text.convert DIRECTORY`: print a tokenizer.json for a checkpoint that has none.

Only transformers knows how to read the older forms (tokenizer.model, vocab.json with merges.txt), and importing its
tokenisers drags torch in. So this runs as a child process, once per load, and the parent stays small.
"""

import subprocess
import sys
from pathlib import Path

from worker.text.errors import CheckpointError

_TIMEOUT_S = 300.0


def convert(path: Path) -> str:
    """Return the text of a tokenizer.json for the model in `path`. Raises `CheckpointError`."""
    command = [sys.executable, "-m", "worker.text.convert", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(path, f"no tokenizer.json, and converting took over {_TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise CheckpointError(path, f"no tokenizer.json, and transformers cannot convert what is there: {reason}")
    return done.stdout


def _main(path: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    sys.stdout.write(tokenizer.backend_tokenizer.to_str())


if __name__ == "__main__":
    _main(sys.argv[1])

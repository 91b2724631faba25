"""``python -m worker.models.fetch SOURCE [--revision R] [--cache-dir D] [--headers DIR]``: resolve a source.

A process of its own. With --mirror the source is a repository of another hub, which one line of JSON on stdin
describes (`worker.models.mirrors.Mirror`), so that its token is in no list of processes. With --headers only what the
model's size can be told from is fetched, into that directory, unless the cache holds the whole model.

Prints JSON lines: ``{"done": bytes, "total": bytes}`` at most five times a second, then ``{"path": directory}`` and
exit code 0, or ``{"error": message, "kind": kind}`` and exit code 1. It ends with its parent, whole files kept.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from shared.process import die_with_parent


def main(argv: list[str] | None = None) -> int:
    """Fetch and report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m worker.models.fetch", description="Download a model's files.")
    parser.add_argument("source", help="a directory, or a repository id")
    parser.add_argument("--revision", default="", help="branch, tag or commit (default: main)")
    parser.add_argument("--cache-dir", type=Path, help="default: that of huggingface_hub")
    parser.add_argument("--mirror", action="store_true", help="of the hub that stdin describes")
    parser.add_argument("--headers", type=Path, metavar="DIR", help="no weights, only their headers")
    parser.add_argument("--parent-pid", type=int, default=os.getppid(), help="whom to end with (default: the parent)")
    options = parser.parse_args(argv)
    die_with_parent(options.parent_pid)

    from huggingface_hub.utils import disable_progress_bars

    from worker.models import hub
    from worker.models.errors import ModelError
    from worker.models.mirrors import Mirror

    disable_progress_bars()
    hub_options: dict[str, Any] = {}
    if options.mirror:
        mirror = msgspec.json.decode(sys.stdin.buffer.readline(), type=Mirror)
        hub_options = {"endpoint": mirror.endpoint, "token": mirror.credential}
        options.cache_dir = options.cache_dir or mirror.cache()
    try:
        if options.headers:
            path = hub.headers(options.source, options.revision, options.cache_dir, options.headers, **hub_options)
        else:
            path = hub.resolve(
                options.source,
                options.revision,
                options.cache_dir,
                lambda done, total: _say({"done": done, "total": total}),
                **hub_options,
            )
    except ModelError as error:
        _say({"error": str(error), "kind": error.kind})
        return 1
    except Exception as error:  # the reader learns of it in the same form
        _say({"error": f"{type(error).__name__}: {error}", "kind": ModelError.kind})
        return 1
    _say({"path": str(path)})
    return 0


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main())

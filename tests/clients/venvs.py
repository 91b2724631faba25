"""Clients from PyPI, each in a virtual environment of its own, made once and kept where the others are kept."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.npm import INSTALL_S, folder
from tests.clients.versions import PYTHON


@functools.cache
def environment(name: str) -> Path:
    """The folder of programs of an environment, made if need be; skips the test where pip cannot make it."""
    wanted = [f"{package}=={version}" if version else package for package, version in PYTHON[name].items()]
    root = folder() / f"python-{name}-{next(iter(PYTHON[name].values()))}"
    done = root / "done"
    if done.exists() and json.loads(done.read_text()) == wanted:
        return root / "bin"
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(root)],
        [str(root / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *wanted],
    ):
        result = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S)
        if result.returncode:
            pytest.skip(f"{', '.join(wanted)} cannot be installed: {result.stderr[-300:]}")
    done.write_text(json.dumps(wanted))
    return root / "bin"

"""Clients from the npm registry, installed once into folders of their own and kept there.

The folder is ``$PLEXUS_TEST_CLIENTS``, else ``~/.cache/plexus-test-clients``.
"""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients.versions import NODE_LIBRARIES

INSTALL_S = 600


def folder() -> Path:
    """Where clients are kept."""
    return Path(os.environ.get("PLEXUS_TEST_CLIENTS") or Path.home() / ".cache" / "plexus-test-clients")


def installed(package: str, version: str, binary: str, script: str = "") -> Path:
    """The program of a package, installed if need be; skips the test where npm cannot.

    `script`: a file of the package that must run once after the installation.
    """
    return module(package, version, script) / ".bin" / binary


@functools.cache
def module(package: str, version: str, script: str = "") -> Path:
    """The folder that holds the package and all that it needs, for ``require``; else as `installed`."""
    root = folder() / f"{package.replace('/', '+')}-{version}"
    modules = root / "node_modules"
    done = root / "done"
    if done.exists():
        return modules
    commands = [_install(root, f"{package}@{version}")]
    if script:
        commands.append(["node", str(root / "node_modules" / package / script)])
    _run(commands, root)
    done.touch()
    return modules


@functools.cache
def libraries() -> Path:
    """A ``node_modules`` with all of `NODE_LIBRARIES`, which also holds the node to run them; skips as `installed`."""
    root = folder() / "node-libraries"
    done = root / "done"
    if not done.exists() or json.loads(done.read_text()) != NODE_LIBRARIES:
        _run([_install(root, *(f"{package}@{version}" for package, version in NODE_LIBRARIES.items()))], root)
        done.write_text(json.dumps(NODE_LIBRARIES))
    return root / "node_modules"


def _install(root: Path, *packages: str) -> list[str]:
    return ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(root), *packages]


def _run(commands: list[list[str]], root: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    root.mkdir(parents=True, exist_ok=True)
    for command in commands:
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=INSTALL_S)
        if result.returncode:
            pytest.skip(f"{' '.join(command)} failed: {result.stderr[-300:]}")

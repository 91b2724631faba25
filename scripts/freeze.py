"""Print constraints.txt: the version of every package that .venv holds for the project, torch and its own left out.

Run it in an environment that has the project with the worker extra and the dev group, after changing dependencies or
to move to newer versions:

    .venv/bin/python scripts/freeze.py > constraints.new && mv constraints.new constraints.txt
"""

import importlib.metadata
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# The versions that are tested together. Made by scripts/freeze.py; used by ./plexus and the container image.
# torch and the GPU libraries it brings are not here: which build is right depends on the host (see ./plexus).
"""
LEFT_OUT = {"torch", "plexus-fleet"}  # torch: pinned in ./plexus


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Name → installed version of every package that `roots` need here, by name. Raises PackageNotFoundError."""
    versions: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo = [(root, "") for root in roots]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        distribution = importlib.metadata.distribution(name)
        versions[name] = distribution.version
        for extra in ("", *sorted(requirement.extras)):
            if (name, extra) not in seen:
                seen.add((name, extra))
                todo += [(Requirement(text), extra) for text in distribution.requires or []]
    return dict(sorted(versions.items()))


def main() -> None:
    """Print the file."""
    root = Path(__file__).parent.parent
    pyproject = tomllib.loads((root / "pyproject.toml").read_text())
    project = pyproject["project"]
    texts = ["pip", *project["dependencies"], *pyproject["dependency-groups"]["dev"]]
    for extra in project["optional-dependencies"].values():
        texts += extra
    sys.stdout.write(HEADER)
    for name, version in closure([Requirement(text) for text in texts]).items():
        if name not in LEFT_OUT:
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()

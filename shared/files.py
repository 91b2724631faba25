"""Where a settings file is found."""

from pathlib import Path

SYSTEM = Path("/etc/plexus")


def settings_file(name: str, explicit: Path | None, system: Path = SYSTEM) -> Path | None:
    """The settings file of a process (`gateway`, `worker`, `operator`), or None: the defaults are in the code.

    1. The one that was named. 2. That of the host. The annotated examples, which show every option with its default,
    are never read: see `example`.
    """
    if explicit is not None:  # 1
        return explicit
    path = system / f"{name}.toml"  # 2
    return path if path.exists() else None


def example(name: str) -> Path:
    """An annotated file that ships with the package, as `gateway.toml`. Raises FileNotFoundError.

    In an installed wheel it lies inside `shared`, in a checkout (and so in an editable installation) in `config`.
    """
    package = Path(__file__).parent
    folders = package / "_config", package.parent / "config"
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    there = sorted(path.stem for folder in folders for path in folder.glob("*.toml"))
    raise FileNotFoundError(f"no example file {name}; there are: {', '.join(there) or 'none'}")

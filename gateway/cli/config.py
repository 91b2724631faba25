"""`plexus config`: check a catalogue, translate the settings of the system before this one."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from gateway.cli.errors import CliError
from shared.settings import GatewaySettings, WorkerSettings

app = typer.Typer(no_args_is_help=True, help="Check and translate settings files.")


@app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A models.toml.")]) -> None:
    """Read a catalogue as a gateway would, and say what it holds or what is wrong with it."""
    from gateway.models_loader import read

    records = read(file)
    aliases = sum(len(record.aliases) for record in records)
    print(f"{file} is good: {len(records)} models, {aliases} aliases")


@app.command("import")
def import_files(
    files: Annotated[list[Path], typer.Argument(help="cortex.toml, models.toml, neuron.toml: any of them.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Directory for gateway.toml, models.toml, worker.toml.", show_default="stdout"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Translate the settings of the system that this one replaces; say what has no counterpart."""
    from gateway.cli.seed_import import translate
    from gateway.models_file import parse

    found = translate({str(file): _read(file) for file in files})
    _check("gateway.toml", GatewaySettings, found.gateway)
    _check("worker.toml", WorkerSettings, found.worker)
    texts = {}
    if found.gateway and out is not None and (found.models or found.aliases):
        found.gateway["models"] = str((out / "models.toml").absolute())
    if found.worker:
        texts["worker.toml"] = found.worker_toml()
    if found.gateway:
        texts["gateway.toml"] = found.gateway_toml()
    if found.models or found.aliases:
        texts["models.toml"] = found.models_toml()
        parse(texts["models.toml"], "the translated models.toml")
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    for name, text in texts.items():
        if out is None:
            print(f"# {name}\n{text}")
        else:
            _write(out / name, text, force)
    if not texts:
        print(f"nothing in {', '.join(map(str, files))} has a counterpart", file=sys.stderr)


def _check(name: str, cls: type[GatewaySettings] | type[WorkerSettings], table: dict[str, Any]) -> None:
    """Would a process start with these settings? Raises CliError."""
    try:
        cls(**table)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        raise CliError(
            f"the translated {name}: {setting} = {first['input']!r}: {first['msg']}. Correct it in the old file."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"cannot read {path}: {error}") from error


def _write(path: Path, text: str, force: bool) -> None:
    if path.exists() and not force:
        raise CliError(f"{path} is there already. Choose another directory with --out, or write over it with --force.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}")

"""Structured logs on stderr: a stable verb and fields, one line an event.

    2025-01-31T12:00:00.123 info job.accepted process=front:abc job=XYZ prompt_tokens=12

`PLEXUS_LOG=json` makes each line a JSON object instead. Values of fields whose name speaks of a secret are masked.
"""

import json
import logging
import re
import sys
import time
from typing import Any

from shared import settings

LEVELS = ("debug", "info", "warning", "error")
_SECRET = re.compile(r"password|secret|token$|seed|authorization|api_key", re.IGNORECASE)
_PLAIN = re.compile(r"[^\s\"=]+")
_process = ""


class Logger:
    """Writes events: `log.info("replica.ready", replica=rid, load_s=3.2)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, verb: str, **fields: Any) -> None:
        """For whoever looks for a fault."""
        self._write(logging.DEBUG, verb, fields)

    def info(self, verb: str, **fields: Any) -> None:
        """Something happened as it should."""
        self._write(logging.INFO, verb, fields)

    def warning(self, verb: str, **fields: Any) -> None:
        """Something was not as it should be, and was dealt with."""
        self._write(logging.WARNING, verb, fields)

    def error(self, verb: str, **fields: Any) -> None:
        """Something failed."""
        self._write(logging.ERROR, verb, fields)

    def exception(self, verb: str, **fields: Any) -> None:
        """As `error`, with the traceback of the exception being handled."""
        self._write(logging.ERROR, verb, fields, exc_info=True)

    def _write(self, level: int, verb: str, fields: dict[str, Any], exc_info: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, verb, extra={"fields": fields}, exc_info=exc_info)


def get(name: str) -> Logger:
    """The logger of a module: `log = get(__name__)`."""
    return Logger(name)


def setup(level: str, process: str) -> None:
    """Send everything of `level` (debug, info, warning, error) and above to stderr; `process` stands on each line.

    Lines of libraries are shown from warning on.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is none of {', '.join(LEVELS)}")
    global _process
    _process = process
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if settings.log_format() == "json" else _LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("shared", "gateway", "worker", "__main__"):
        logging.getLogger(name).setLevel(level.upper())


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields = dict(getattr(record, "fields", {}))
    masked = {key: "***" if _SECRET.search(key) and value else value for key, value in fields.items()}
    return {"process": _process, **masked} if _process else masked


class _LineFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(record.created))
        words = [f"{moment}.{int(record.msecs):03d}", record.levelname.lower(), record.getMessage()]
        words += [f"{key}={_word(value)}" for key, value in _fields(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {"at_s": record.created, "level": record.levelname.lower(), "verb": record.getMessage()}
        entry |= _fields(record)
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


def _word(value: object) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)

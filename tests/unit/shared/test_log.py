"""Lines of the log."""

import json
import logging

import pytest

from shared import log as logs

log = logs.get("shared.test")


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    monkeypatch.setattr(logs, "_process", "")
    for name in ("shared", "gateway", "worker", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_one_line_an_event(capsys):
    logs.setup("info", "gateway:1")
    log.debug("hidden")
    log.info("job.done", job="J1", text='two words "quoted"', took_s=0.123456789, none=None, empty="")
    (line,) = capsys.readouterr().err.splitlines()
    moment, rest = line.split(" ", 1)
    assert moment.count(":") == 2 and "T" in moment
    assert rest == (
        r'info job.done process=gateway:1 job=J1 text="two words \"quoted\"" took_s=0.123457 none=None empty=""'
    )


def test_newlines_stay_in_the_line(capsys):
    logs.setup("info", "x")
    log.info("a", text="one\ntwo")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("key", ["password", "gateway_password", "api_key", "nkey_seed", "auth_token", "Authorization"])
def test_secrets_are_masked(capsys, key):
    logs.setup("info", "x")
    log.info("a", **{key: "geheim", "prompt_tokens": 3})
    line = capsys.readouterr().err
    assert "geheim" not in line and f"{key}=" in line and "prompt_tokens=3" in line


def test_json(capsys, monkeypatch):
    monkeypatch.setenv("PLEXUS_LOG", "json")
    logs.setup("debug", "w")
    try:
        raise ValueError("on purpose")
    except ValueError:
        log.exception("broke", job="ä")
    entry = json.loads(capsys.readouterr().err)
    assert (entry["level"], entry["verb"], entry["process"], entry["job"]) == ("error", "broke", "w", "ä")
    assert "ValueError: on purpose" in entry["traceback"]


def test_libraries_are_quiet_up_to_warning(capsys):
    logs.setup("debug", "w")
    logging.getLogger("library").info("chatter")
    logging.getLogger("library").warning("heard %s", "this")
    assert capsys.readouterr().err.rstrip().endswith("warning heard this process=w")


def test_level_must_exist():
    with pytest.raises(ValueError, match="loud"):
        logs.setup("loud", "x")

"""The configuration that is written for a nats-server."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from shared.broker import render
from shared.settings import BrokerSettings

CONFIG = Path(__file__).parents[3] / "config" / "nats" / "nats-server.conf"


def test_file_that_ships_is_what_the_code_makes():
    assert CONFIG.read_text() == render(BrokerSettings())


def test_file_that_ships_holds_no_password():
    text = CONFIG.read_text()
    assert all(f"password: ${who}_PASSWORD" in text for who in ("GATEWAY", "OPERATOR", "WORKER", "SYSTEM"))
    assert 'password: ""' not in text


def test_passwords_are_quoted_and_references_are_not():
    text = render(BrokerSettings(gateway_password='a"b$C', operator_password="$2a$11$bcrypted", worker_password="$W1"))
    assert r'password: "a\"b$C"' in text and 'password: "$2a$11$bcrypted"' in text and "password: $W1," in text


@pytest.mark.parametrize("who", ["gateway", "operator", "system"])
def test_empty_passwords_are_refused(who):
    with pytest.raises(ValidationError):
        BrokerSettings(**{f"{who}_password": ""})


def test_users_for_named_workers_instead_of_one_for_all():
    text = render(BrokerSettings(worker_password="", workers={"gpu1": "x", "gpu2": "y"}))
    assert 'user: "worker"' not in text
    assert 'user: "gpu1"' in text and '"$KV.fleet.worker.gpu2"' in text and '"_INBOX_gpu1.>"' in text
    assert "$KV.fleet.worker.*" not in text


@pytest.mark.parametrize("name", ["a.b", "*", "a b", ""])
def test_worker_names_must_be_tokens(name):
    with pytest.raises(ValueError, match="worker name"):
        render(BrokerSettings(workers={name: "x"}))


def test_optional_parts():
    text = render(
        BrokerSettings(tls_cert="/c.pem", tls_key="/k.pem", monitor="127.0.0.1:8222", run_dir="/run", log_file="/l")
    )
    assert 'cert_file: "/c.pem"' in text and 'http: "127.0.0.1:8222"' in text
    assert 'ports_file_dir: "/run"' in text and 'log_file: "/l"' in text

"""Subjects, keys and slugs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import names


@given(st.text(min_size=1, max_size=60).filter(lambda text: text.isprintable()))
def test_slug_is_reversible_and_one_subject_token(model):
    slug = names.slug(model)
    assert names.model_id(slug) == model
    assert re.fullmatch(r"[A-Za-z0-9_=-]+", slug)


def test_slug_example():
    assert names.slug("meta-llama/Llama-3.1-8B") == "meta-llama=2FLlama-3=2E1-8B"


@pytest.mark.parametrize("slug", ["", "a.b", "a=2", "a=2f", "=FF", "a b", "*", ">"])
def test_what_slug_never_makes_is_refused(slug):
    with pytest.raises(ValueError, match="slug"):
        names.model_id(slug)


def test_empty_model_id_is_refused():
    with pytest.raises(ValueError, match="empty"):
        names.slug("")


def test_job_subject_and_back():
    subject = names.job_subject("org/m.1", "batch")
    assert subject == "plexus.job.org=2Fm=2E1.batch"
    assert names.parse_job_subject(subject) == ("org/m.1", "batch")
    with pytest.raises(ValueError, match="no job subject"):
        names.parse_job_subject("plexus.job.m.urgent")


def test_reply_of_a_gone_owner_comes_back_whole():
    reply = "_INBOX_operator.a.b.c"
    assert names.gone_reply("r1", names.no_responders("r1", reply)) == reply


def test_keys():
    assert names.kv_key(names.kv_subject(names.FLEET, names.worker_key("gpu1"))) == "worker.gpu1"
    assert names.key_kind("worker.gpu1") == ("worker", "gpu1")
    assert names.key_kind(names.LEASE_PLACER) == ("lease", "placer")


def test_client_names():
    assert names.parse_client_name(names.client_name("replica", "a:b")) == ("replica", "a:b")
    assert names.parse_client_name("NATS CLI") == ("", "NATS CLI")


def test_ids_are_tokens_and_differ():
    ids = {names.new_id() for _ in range(1000)}
    assert len(ids) == 1000
    for one in ids:
        assert names.check_token(one, "id") == one
    with pytest.raises(ValueError, match=r"worker name 'a\.b'"):
        names.check_token("a.b", "worker name")

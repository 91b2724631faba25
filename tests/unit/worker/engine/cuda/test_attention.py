"""The ways of attention: the reference is right, and a way that is wrong is not used."""

from dataclasses import replace

import pytest
import torch

from worker.engine.cuda import attention
from worker.engine.cuda.attention import Kind, choose, gather, packed, trial, varlen


@pytest.fixture
def kind():
    return Kind(4, 2, 16, 16, None, False, False, False, 8, torch.float32, torch.device("cpu"))


def attend_plainly(query, cache, group, rule):
    """Row by row, key by key, with nothing clever."""
    out = []
    for row in range(group.num_rows):
        first, stop = group.starts[row : row + 2].tolist()
        length = int(group.lengths[row])
        page = cache.page_tokens
        slots = [int(group.tables[row, key // page]) * page + key % page for key in range(length)]
        keys, values = cache.keys.flatten(0, 1)[slots], cache.values.flatten(0, 1)[slots]
        for token in range(first, stop):
            place = length - (stop - token)
            low = max(0, place - rule.window + 1) if rule.window else 0
            heads = []
            for head in range(query.shape[1]):
                kv_head = head // (query.shape[1] // cache.kv_heads)
                scores = keys[low : place + 1, kv_head] @ query[token, head] * rule.scale
                if rule.softcap:
                    scores = torch.tanh(scores / rule.softcap) * rule.softcap
                if rule.sinks is not None:
                    scores = torch.cat([scores, rule.sinks[head, None]])
                weights = scores.softmax(0)[: place + 1 - low]
                heads.append(weights @ values[low : place + 1, kv_head])
            out.append(torch.stack(heads))
    return torch.stack(out)


@pytest.mark.parametrize("is_single", [False, True])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("is_strange", [False, True])
@pytest.mark.parametrize("scores", [16 << 20, 50], ids=["at-once", "in-pieces"])
def test_gathering_is_right(kind, is_single, window, is_strange, scores, monkeypatch):
    monkeypatch.setattr(attention, "_SCORES", scores)
    kind = replace(kind, is_single=is_single, window=window, has_softcap=is_strange, has_sinks=is_strange)
    asked = trial(kind)
    torch.testing.assert_close(gather(*asked), attend_plainly(*asked), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_strange", [False, True])
def test_what_others_left_on_a_page_is_not_seen(kind, is_strange):
    asked = trial(replace(kind, has_softcap=is_strange, has_sinks=is_strange))
    _, cache, group, _ = asked
    expected = gather(*asked)
    free = torch.ones(cache.keys.shape[:2], dtype=torch.bool)
    for table, length in zip(group.tables.tolist(), group.lengths.tolist(), strict=True):
        for key in range(length):
            free[table[key // cache.page_tokens], key % cache.page_tokens] = False
    cache.keys[free] = cache.values[free] = torch.nan
    torch.testing.assert_close(gather(*asked), expected)


def test_a_way_that_is_wrong_or_fails_is_left_out(kind, monkeypatch):
    monkeypatch.setattr(attention, "_unfit", lambda way, kind: None)
    monkeypatch.setitem(attention._FUNCTIONS, "varlen", lambda *asked: gather(*asked) * 1.01)
    monkeypatch.setitem(attention._FUNCTIONS, "packed", lambda *asked: 1 / 0)
    monkeypatch.setitem(attention._FUNCTIONS, "triton", lambda *asked: gather(*asked))
    choose.cache_clear()
    assert choose(kind, attention.WAYS) == "triton"
    assert choose(kind, ("varlen", "packed")) == "gather"
    choose.cache_clear()


def test_what_flash_attention_cannot_is_not_asked_of_it(kind):
    fit = replace(kind, dtype=torch.bfloat16, page_tokens=256)
    assert attention._unfit("varlen", fit) == attention._no_block_tables()
    assert attention._unfit("packed", fit) is None
    for change in ({"has_softcap": True}, {"has_sinks": True}, {"key_dim": 512, "value_dim": 512}, {"value_dim": 8}):
        for way in ("varlen", "packed"):
            assert attention._unfit(way, replace(fit, **change))
    assert attention._unfit("varlen", replace(fit, page_tokens=32))
    assert attention._unfit("packed", replace(fit, is_single=True))


def test_flash_attention_is_asked_with_names_that_this_torch_knows(kind, monkeypatch):
    """The functions need a device; that their arguments are accepted shows without one."""
    import torch.nn.attention.varlen as module

    kind = replace(kind, dtype=torch.bfloat16, page_tokens=256, window=100)
    query, cache, group, rule = trial(kind)
    asked = []
    for name, way in (("varlen_attn_out", varlen), ("varlen_attn", packed)):
        function = getattr(module, name, None)
        if function is None:
            continue

        def note(*arguments, of=function, **options):
            import inspect

            asked.append(inspect.signature(of).bind(*arguments, **options).arguments)
            return query

        note.__signature__ = __import__("inspect").signature(function)
        monkeypatch.setattr(module, name, note)
        way(query, cache, group, rule)
    assert asked
    for arguments in asked:
        assert arguments["window_size"] == (99, 0)
        assert arguments["max_q"] == group.max_tokens
    keys = asked[-1]["key"]  # gathered: row 1 has 5 keys, all on page 3
    torch.testing.assert_close(keys[int(group.offsets[1]) :][:5], cache.keys[3, :5])

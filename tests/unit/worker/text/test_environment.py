"""The sandbox's short ways lead to the same as the sandbox itself."""

import jinja2
import pytest
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from worker.text.environment import _environment, _Namespace

PLAIN = ImmutableSandboxedEnvironment()
MESSAGE = {"role": "user", "content": "hi", "items": "a field of that name", "_private": 1, "pop": 2, "__class__": 3}
ATTRIBUTES = sorted(
    {*dir(dict), *dir(str), *dir(LoopContext), *dir(_Namespace), *MESSAGE, "nothing", "found", "", "_", "a b"}
)


def loop() -> LoopContext:
    context = LoopContext(["a", "b"], jinja2.Undefined, None)
    next(context)
    return context


def outcome(environment: jinja2.Environment, value: object, attribute: str) -> str:
    """What a template would have of it, or be told."""
    found = environment.getattr(value, attribute)
    if not isinstance(found, jinja2.Undefined):
        return getattr(found, "__qualname__", None) or repr(found)
    try:
        return found._fail_with_undefined_error()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("make", [lambda: MESSAGE, lambda: "text", loop, lambda: _Namespace(found=1), list, object])
def test_every_attribute_is_what_the_sandbox_gives(make) -> None:
    for attribute in ATTRIBUTES:
        assert outcome(_environment(), make(), attribute) == outcome(PLAIN, make(), attribute), attribute


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.format.__globals__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{% set ns = namespace(f='{0.__class__.__mro__}'.format) %}{{ ns.f(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{% set ns = namespace() %}{{ ns.__class__ }}",
        "{% set ns = namespace() %}{{ ns._Namespace__attrs }}",
        "{% for m in messages %}{{ loop._length }}{{ loop.__class__ }}{% endfor %}",
        "{{ messages[0].clear() }}",
        "{{ messages[0].update({}) }}",
        "{{ messages.append(1) }}",
    ],
)
def test_what_the_sandbox_keeps_stays_kept(source: str) -> None:
    plain = ImmutableSandboxedEnvironment()
    plain.globals["namespace"] = _Namespace
    outcomes, messages = [], [dict(MESSAGE)]
    for environment in (_environment(), plain):
        try:
            outcomes.append(environment.from_string(source).render(messages=messages))
        except jinja2.TemplateError as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    assert outcomes[0] == outcomes[1]
    assert not any(word in outcomes[0] for word in ("<class", "object at"))
    assert messages == [MESSAGE]

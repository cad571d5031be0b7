"""Names, versions and who still uses them."""

import pytest

from constrained_adapters.serving.failures import RequestError, UnknownModelError
from constrained_adapters.serving.registry import ModelRegistry


@pytest.fixture
def registry():
    registry = ModelRegistry()
    registry.publish("law", {"law": 1.0})
    registry.publish("tax", {"law": 1.0, "tax": 1.0})
    return registry


def test_a_mix_adds_up_the_adapters_of_its_domains(registry):
    hold = registry.hold({"law": 0.5, "tax": 0.25})
    assert hold.adapters == {"law": 0.75, "tax": 0.25}
    assert hold.names == {"law": 0.5, "tax": 0.25}
    assert registry.hold({"law": 1.0, "tax": -1.0}).adapters == {"tax": -1.0}


def test_an_adapter_is_unused_when_no_name_and_no_answer_needs_it(registry):
    first, second = registry.hold({"tax": 1.0}), registry.hold({"tax": 1.0})
    registry.publish("tax", {"tax-1": 1.0})
    assert registry.take_unused() == []
    registry.release(first)
    assert registry.take_unused() == []
    registry.release(second)
    assert registry.take_unused() == ["tax"]  # not law: it is served
    assert registry.take_unused() == []
    registry.withdraw("law")
    assert registry.take_unused() == ["law"]


def test_an_unknown_name_says_the_nearest(registry):
    with pytest.raises(UnknownModelError, match=r"Try:\s+law"):
        registry.hold({"laww": 1.0})
    with pytest.raises(UnknownModelError):
        registry.withdraw("gone")


@pytest.mark.parametrize("name", ["base", "auto", "law"])
def test_a_name_that_is_taken_is_not_given_twice(registry, name):
    with pytest.raises(RequestError):
        registry.check_new(name, replace=False)


def test_a_domain_may_be_replaced_but_not_the_base(registry):
    registry.check_new("law", replace=True)
    with pytest.raises(RequestError):
        registry.check_new("base", replace=True)

"""Every method has every property, or says which it has not, and then really has not."""

import pytest
from properties import PROPERTIES, catalogue, holds

import gam_merge as gm

METHODS = catalogue()


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_holds_or_is_declared_not_to(method: gm.Method, name: str) -> None:
    assert holds(method, name) == (name not in method.breaks), method.breaks.get(
        name, "declared to hold"
    )


def test_only_known_properties_are_declared() -> None:
    assert {name for method in METHODS for name in method.breaks} <= set(PROPERTIES)

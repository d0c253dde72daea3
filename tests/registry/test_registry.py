"""Registries: visible tables, loaded on first use."""

from importlib.metadata import EntryPoint

import pytest

import edgesparse.registry
from edgesparse.errors import UnknownName, UsageError
from edgesparse.registry import Registry


@pytest.fixture
def colours():
    return Registry("colour", {"pi": "math:pi", "broken": "no_such_module:x"})


def test_a_row_is_imported_on_first_use(colours):
    assert colours.get("pi") == pytest.approx(3.14159, abs=1e-5)
    assert "broken" in colours
    with pytest.raises(ModuleNotFoundError):
        colours.get("broken")


def test_rows_are_listed_in_order(colours):
    colours.register("e", 2.718)
    assert list(colours) == ["broken", "e", "pi"]


def test_nothing_is_replaced_silently(colours):
    colours.register("e", 2.718)
    for name in ("e", "pi"):
        with pytest.raises(UsageError, match="already registered"):
            colours.register(name, 0)
    assert colours.get("e") == 2.718


def test_an_unknown_name_lists_the_known_and_the_nearest(colours):
    with pytest.raises(UnknownName) as caught:
        colours.get("brokne")
    message = "unknown colour 'brokne'; known: broken, pi; did you mean 'broken'?"
    assert str(caught.value) == message


def test_far_from_everything_no_guess_is_made(colours):
    with pytest.raises(UnknownName, match=r"known: broken, pi$"):
        colours.get("zzz")


def test_packages_add_rows_by_entry_point(colours, monkeypatch):
    points = {"edgesparse.colour": [EntryPoint("tau", "math:tau", "edgesparse.colour")]}
    monkeypatch.setattr(edgesparse.registry, "entry_points", lambda group: points[group])
    assert colours.get("tau") == pytest.approx(6.28318, abs=1e-5)


def test_a_package_cannot_take_a_builtin_name(colours, monkeypatch):
    clash = [EntryPoint("pi", "math:e", "edgesparse.colour")]
    monkeypatch.setattr(edgesparse.registry, "entry_points", lambda group: clash)
    with pytest.raises(UsageError, match="registered twice"):
        colours.get("pi")

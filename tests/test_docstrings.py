"""The public docstrings: arguments one by one, what comes back, what is raised, and an example that runs."""

import doctest
import inspect
import re
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import gam_merge as gm
from gam_merge import rules

EXAMPLES = Path(__file__).parents[1] / "examples"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def public(module: ModuleType) -> dict[str, Any]:
    """What a module offers, by its full name."""
    names: dict[str, Any] = {}
    for name in dir(module):  # some are imported when they are asked for
        value = getattr(module, name)
        if not name.startswith("_") and callable(value):
            names[f"{module.__name__}.{name}"] = value
    return names


PUBLIC = {**public(gm), **public(rules)}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def sections(text: str) -> dict[str, str]:
    """Google's sections of a docstring: ``Args`` -> its text."""
    parts = re.split(
        r"^(Args|Returns|Yields|Raises|Example|Attributes):\n", inspect.cleandoc(text), flags=re.M
    )
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def named(section: str) -> list[str]:
    """The names that a list of arguments explains."""
    return re.findall(r"^    \**(\w+)(?: \([^)]*\))?: ", section, flags=re.M)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_all_that_they_take_and_give(name: str) -> None:
    function = FUNCTIONS[name]
    said = sections(function.__doc__ or "")
    order = ["Args", "Returns", "Raises", "Example"]
    assert list(said) == [section for section in order if section in said]
    parameters = list(inspect.signature(function).parameters)
    assert named(said.get("Args", "")) == parameters
    assert said.get("Returns"), "no Returns"
    assert ">>> " in said.get("Example", ""), "no Example"


@pytest.mark.parametrize("name", CLASSES)
def test_classes_are_shown(name: str) -> None:
    kind = CLASSES[name]
    if not issubclass(kind, Exception):
        assert ">>> " in sections(kind.__doc__ or "").get("Example", ""), "no Example"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signatures_are_explicit(name: str) -> None:
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        assert parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL), (
            parameter.name
        )
        assert parameter.annotation not in (inspect.Parameter.empty, typing.Any), parameter.name


@pytest.mark.parametrize("name", PUBLIC)
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder beside the example adapters."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    for test in doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={"gm": gm}):
        lines: list[str] = []
        failed, _ = runner.run(test, out=lines.append)
        assert not failed, "".join(lines)

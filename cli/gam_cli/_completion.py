"""Completion in the shell: methods and their parameters, from a list that is read without torch.

The list, ``catalogue.json``, has what comes with gam-merge; ``python docs/methods_page.py`` writes
it. Methods of installed packages can be typed, but are not completed.
"""

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

import typer

Completion = tuple[str, str]  # what is typed, and a text about it
Cards = dict[str, dict[str, Any]]  # name -> its summary, its parameters with values to offer


@cache
def _catalogue() -> dict[str, Cards]:
    text = files("gam_cli").joinpath("catalogue.json").read_text("utf-8")
    catalogue: dict[str, Cards] = json.loads(text)
    return catalogue


def complete_method(incomplete: str) -> Iterator[Completion]:
    """Complete the last word of ``[pre+...]rule[@space][+post...]``."""
    head, plus, word = incomplete.rpartition("+")
    before = head + plus
    rule, at, _ = word.partition("@")
    candidates: Iterator[Completion]
    if at:
        candidates = _summaries("spaces", f"{before}{rule}@")
    elif _rule_of(head):
        candidates = _summaries("post", before)
    else:
        candidates = _first_words(before)
    for text, summary in candidates:
        if text.startswith(incomplete):
            yield text, summary


def complete_param(ctx: typer.Context, incomplete: str) -> Iterator[Completion]:
    """Complete ``NAME=VALUE`` for the method on the command line: with its default, or a choice."""
    method = ctx.params.get("method") or ""
    for name, param in _params(method):
        for value in param["values"]:
            text = f"{name}={value}"
            if text.startswith(incomplete):
                yield text, param["doc"]


def _first_words(before: str) -> Iterator[Completion]:
    """What may come before a rule, or be it."""
    yield from _summaries("rules", before)
    for name, summary in _summaries("pre", before):
        yield f"{name}+", summary


def _summaries(kind: str, before: str) -> Iterator[Completion]:
    for name, card in _catalogue()[kind].items():
        yield before + name, card["summary"]


def _rule_of(method: str) -> str | None:
    """The rule among the words of a method's name."""
    for word in method.split("+"):
        rule = word.partition("@")[0]
        if rule in _catalogue()["rules"]:
            return rule
    return None


def _params(method: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The parameters of a method, those of its space and plug-ins included."""
    catalogue = _catalogue()
    for word in method.split("+"):
        name, _, space = word.partition("@")
        for kind in ("rules", "pre", "post"):
            if name in catalogue[kind]:
                yield from catalogue[kind][name]["params"].items()
        if space in catalogue["spaces"]:
            yield from catalogue["spaces"][space]["params"].items()

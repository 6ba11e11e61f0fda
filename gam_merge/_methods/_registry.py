"""Methods by name: the built-in ones, and those of installed packages.

An installed package is imported only when its method is named or all are listed.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, NamedTuple

from gam_merge._common.errors import GamMergeError
from gam_merge._methods._catalogue import PLUGINS, RULES, SPACES
from gam_merge._methods._compose import compose, leaves_core
from gam_merge._methods._method import Method
from gam_merge._methods._rule import Card, Plugin, Rule, Space

_BUILT_IN: dict[str, Card] = {card.name: card for card in (*RULES, *SPACES, *PLUGINS)}
_ALIASES = {
    "ctm": "mean@ctm",
    "knots": "ties@knots",
    "drm_h": "elect@drm_h",
    "drm_v": "elect@drm_v",
}
_DEFAULT_SPACE = "core"  # of rules on entries
_GROUP = "gam_merge.methods"


class _Word(NamedTuple):
    """A word ``card[@space]`` of a method's name."""

    card: Rule | Plugin
    space: Space | None


def methods() -> tuple[Method, ...]:
    """List the merge methods, one per rule.

    A rule on entries comes in its default space; ``get_method`` gives it in the other spaces and
    with plug-ins, too. Methods of installed packages follow the built-in ones.

    Returns:
        The methods, in the order of docs/methods.md.

    Raises:
        GamMergeError: An installed package declares a method that cannot be loaded.

    Example:
        >>> [method.name for method in gm.methods() if method.adapters == 2]
        ['slerp', 'nuslerp']
    """
    return tuple(get_method(card.name) for card in _cards() if isinstance(card, Rule))


def spaces() -> tuple[Space, ...]:
    """List the spaces that may follow ``@`` in the name of a method: ``ties@knots``.

    Returns:
        The cards of the spaces, ours first.
    Raises:
        GamMergeError: an installed package declares one that cannot be loaded.
    Example:
        >>> [space.name for space in gm.spaces()]
        ['core', 'knots', 'drm_h', 'drm_v', 'ctm', 'factor', 'delta']
    """
    return tuple(card for card in _cards() if isinstance(card, Space))


def plugins() -> tuple[Plugin, ...]:
    """List the plug-ins that may come before or after a rule: ``pico+tsvm``, ``sum+svc``.

    Returns:
        The cards of the plug-ins, ours first.
    Raises:
        GamMergeError: an installed package declares one that cannot be loaded.
    Example:
        >>> [plugin.name for plugin in gm.plugins() if plugin.side == "post"]
        ['svc', 'subspace_boost', 'isotropize']
    """
    return tuple(card for card in _cards() if isinstance(card, Plugin))


@cache
def get_method(name: str) -> Method:
    """Return a merge method by its name.

    Args:
        name: ``[pre+...]rule[@space][+post...]``, such as "gam", "ties@knots" or "pico+tsvm+svc".

    Returns:
        The method: its card, its parameters and their checks.

    Raises:
        GamMergeError: A word of the name is unknown, or the words do not fit together.

    Example:
        >>> method = gm.get_method("norm_equalise+mean")
        >>> method.rank, method.normalize
        ('largest', True)
        >>> method.validate({"scale": "0.5"})
        {'norm_equalise.beta': 0.0, 'scale': 0.5, 'rescale': 'none'}
    """
    full_name = _ALIASES.get(name, name)
    words = [_word(name, word) for word in full_name.split("+")]
    rules = [i for i, word in enumerate(words) if isinstance(word.card, Rule)]
    if len(rules) != 1:
        raise GamMergeError(
            f"method {name!r} has {len(rules)} rules; write [pre+...]rule[@space][+post...]"
        )
    rule, space = words[rules[0]]
    assert isinstance(rule, Rule)
    before = _plugins(name, words[: rules[0]], "pre")
    after = _plugins(name, words[rules[0] + 1 :], "post")
    plugins = (*before, *after)
    _check_fit(name, rule, space, plugins)
    return Method(full_name, rule, space, plugins, compose(rule, space, plugins))


def _plugins(name: str, words: Sequence[_Word], side: Literal["pre", "post"]) -> list[Plugin]:
    """The plug-ins on one side of a rule."""
    plugins = [word.card for word in words if isinstance(word.card, Plugin)]
    for plugin in plugins:
        if plugin.side != side:
            where = {"pre": "before", "post": "after"}[side]
            raise GamMergeError(f"method {name!r}: {plugin.name} does not belong {where} the rule")
    return plugins


def _check_fit(name: str, rule: Rule, space: Space | None, plugins: Sequence[Plugin]) -> None:
    """Raise GamMergeError where plug-ins cannot work around a rule."""
    in_core = [plugin for plugin in plugins if plugin.on == "core"]
    if not in_core or not leaves_core(rule, space):
        return
    if space is not None:
        raise GamMergeError(
            f"method {name!r}: {in_core[0].name} works in core space, which @{space.name} leaves"
        )
    raise GamMergeError(f"method {name!r}: {rule.name} cannot be combined with {in_core[0].name}")


def _word(method: str, word: str) -> _Word:
    """Look up a word ``card[@space]`` of a method's name."""
    name, _, space = word.partition("@")
    card = _card(name)
    if not isinstance(card, Rule | Plugin):
        raise _unknown(name)
    if not (isinstance(card, Rule) and card.entries is not None):
        if space:
            raise GamMergeError(f"method {method!r}: {name} does not take a space")
        return _Word(card, None)
    if not space and card.kind != "entries":
        return _Word(card, None)
    return _Word(card, _space(method, space or _DEFAULT_SPACE))


def _space(method: str, name: str) -> Space:
    card = _card(name)
    if not isinstance(card, Space):
        known = ", ".join(space.name for space in spaces())
        raise GamMergeError(f"method {method!r}: unknown space {name!r}; expected one of {known}")
    return card


def _unknown(name: str) -> GamMergeError:
    close = get_close_matches(name, [*_BUILT_IN, *_ALIASES], 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return GamMergeError(
        f"unknown method {name!r}; {hint}gam-merge methods lists them (gm.methods())"
    )


def _card(name: str) -> Card | None:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    for point in entry_points(group=_GROUP, name=name):
        return _load(point)
    return None


def _cards() -> list[Card]:
    """Every rule, space and plug-in, the built-in ones first."""
    return [*_BUILT_IN.values(), *map(_load, entry_points(group=_GROUP))]


def _load(point: EntryPoint) -> Card:
    package = point.dist.name if point.dist else point.value
    subject = f"method {point.name} of the installed package {package}"
    if point.name in _BUILT_IN:
        raise GamMergeError(
            f"{subject} has the name of a built-in one; uninstall the package, or rename it there"
        )
    try:
        card = point.load()
    except Exception as error:
        raise GamMergeError(f"{subject} cannot be loaded: {error}") from error
    if not isinstance(card, Card) or card.name != point.name:
        raise GamMergeError(f"{subject} is not a rule, space or plug-in of that name")
    return card

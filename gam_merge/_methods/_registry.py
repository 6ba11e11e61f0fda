"""Methods by name: our own, and those of installed packages, which are imported only when they are named or listed."""

from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from gam_merge._common.errors import GamMergeError
from gam_merge._methods._catalogue import PLUGINS, RULES, SPACES
from gam_merge._methods._method import Method
from gam_merge._methods._rule import Card, Plugin, Rule, Space

_OURS: dict[str, Card] = {card.name: card for card in (*RULES, *SPACES, *PLUGINS)}
_ALIASES = {"ctm": "mean@ctm", "knots": "ties@knots"}
_SPACE = "core"  # of rules that look at entries, if none is named
_SIDES = {"pre": "before", "post": "after"}
_GROUP = "gam_merge.methods"


def methods() -> tuple[Method, ...]:
    """One method a rule, in its own space. ``get_method`` knows their compositions too. Raises GamMergeError."""
    return tuple(get_method(card.name) for card in _cards() if isinstance(card, Rule))


def spaces() -> tuple[Space, ...]:
    """List the spaces that may follow ``@`` in the name of a method: ``ties@knots``.

    Returns:
        The cards of the spaces, ours first.
    Raises:
        GamMergeError: an installed package declares one that cannot be loaded.
    Example:
        >>> [space.name for space in gm.spaces()]
        ['core', 'knots', 'ctm', 'factor', 'delta']
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
        ['svc', 'subspace_boost']
    """
    return tuple(card for card in _cards() if isinstance(card, Plugin))


@cache
def get_method(name: str) -> Method:
    """The method of that name. Raises GamMergeError."""
    words = _ALIASES.get(name, name).split("+")
    found = [_word(name, *word.partition("@")[::2]) for word in words]
    rules = [i for i, (card, _) in enumerate(found) if isinstance(card, Rule)]
    if len(rules) != 1:
        raise GamMergeError(
            f"method {name!r} has {len(rules)} rules; write [pre+...]rule[@space][+post...]"
        )
    rule, space = found[rules[0]]
    plugins = tuple(card for card, _ in found if isinstance(card, Plugin))
    for i, (card, _) in enumerate(found):
        side = "pre" if i < rules[0] else "post"
        if isinstance(card, Plugin) and card.side != side:
            raise GamMergeError(
                f"method {name!r}: {card.name} does not belong {_SIDES[side]} the rule"
            )
    if space is not None and plugins and not (space.takes == space.gives == "core"):
        raise GamMergeError(
            f"method {name!r}: {plugins[0].name} works in core space, which @{space.name} leaves"
        )
    assert isinstance(rule, Rule)
    if plugins and not rule.composes:
        raise GamMergeError(f"method {name!r}: {rule.name} stands alone, without {plugins[0].name}")
    return Method("+".join(words), rule, space, plugins)


def _word(method: str, name: str, where: str) -> tuple[Rule | Plugin, Space | None]:
    """The card of a word ``name[@where]`` of a method's name, and its space."""
    card = _card(name)
    if not isinstance(card, Rule | Plugin):
        close = "".join(
            f", did you mean {match}?" for match in get_close_matches(name, [*_OURS, *_ALIASES], 1)
        )
        raise GamMergeError(
            f"no method is called {name!r}{close}; gam-merge methods lists them (gm.methods())"
        )
    if not (isinstance(card, Rule) and card.entries is not None):
        if where:
            raise GamMergeError(f"method {method!r}: {name} takes no space")
        return card, None
    if not where and card.kind != "entries":
        return card, None
    space = _card(where or _SPACE)
    if not isinstance(space, Space):
        raise GamMergeError(
            f"method {method!r}: the spaces are: {', '.join(s.name for s in spaces())}"
        )
    return card, space


def _card(name: str) -> Card | None:
    if name in _OURS:
        return _OURS[name]
    return next((_load(point) for point in entry_points(group=_GROUP, name=name)), None)


def _cards() -> list[Card]:
    """Every rule, space and plug-in: ours first."""
    return [*_OURS.values(), *map(_load, entry_points(group=_GROUP))]


def _load(point: EntryPoint) -> Card:
    whose = f"method {point.name} of the installed package {point.dist.name if point.dist else point.value}"
    if point.name in _OURS:
        raise GamMergeError(
            f"{whose} has the name of one of ours; uninstall the package, or rename it there"
        )
    try:
        card = point.load()
    except Exception as error:
        raise GamMergeError(f"{whose} cannot be loaded: {error}") from error
    if not isinstance(card, Card) or card.name != point.name:
        raise GamMergeError(f"{whose} is no rule, space or plug-in of that name")
    return card

"""The merge methods: rules, one a file, and the spaces and plug-ins that they are composed with.

A method is named ``[pre+...]rule[@space][+post...]``: ``gam``, ``ties@knots``, ``pico+tsvm``, ``iso_c+svc``. To add
one, write a rule and list it here; from another package, name it under the entry-point group ``gam_merge.methods``.
"""

from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

from gam_merge._errors import GamMergeError
from gam_merge._methods import dare, della, linear, slerp, spherical
from gam_merge._methods._method import Method as Method
from gam_merge._methods._rule import Card, Plugin, Rule, Space
from gam_merge._methods.breadcrumbs import breadcrumbs
from gam_merge._methods.consensus import consensus
from gam_merge._methods.dc_merge import dc_merge
from gam_merge._methods.frechet import frechet
from gam_merge._methods.gam import gam
from gam_merge._methods.geometric_median import geometric_median
from gam_merge._methods.iso_c import iso_c
from gam_merge._methods.iso_cts import iso_cts
from gam_merge._methods.magnitude import magnitude
from gam_merge._methods.model_stock import model_stock
from gam_merge._methods.plugins.norms import mad_cap, norm_equalise
from gam_merge._methods.plugins.pico import pico
from gam_merge._methods.plugins.svc import svc
from gam_merge._methods.spaces.core import core
from gam_merge._methods.spaces.ctm import ctm
from gam_merge._methods.spaces.delta import delta
from gam_merge._methods.spaces.factor import factor
from gam_merge._methods.spaces.knots import knots
from gam_merge._methods.ties import ties
from gam_merge._methods.tsvm import tsvm
from gam_merge._methods.wudi import wudi

_RULES = (
    *(gam, frechet, consensus),
    *(linear.mean, linear.total, linear.cat, linear.svd_k),
    *(iso_c, iso_cts, tsvm, dc_merge, wudi),
    *(slerp.slerp, slerp.nuslerp, spherical.multislerp, spherical.karcher, model_stock, geometric_median),
    *(ties, magnitude, dare.dare, dare.dare_ties, della.della, della.della_linear, breadcrumbs),
)
_SPACES = (core, knots, ctm, factor, delta)
_PLUGINS = (norm_equalise, mad_cap, pico, svc)
_ALIASES = {"ctm": "mean@ctm", "knots": "ties@knots"}
_SPACE = "core"  # of rules that look at entries, if none is named
_SIDES = {"pre": "before", "post": "after"}
_SIDES = {"pre": "before", "post": "after"}
_GROUP = "gam_merge.methods"


@cache
def cards() -> dict[str, Card]:
    """Every rule, space and plug-in by name: ours first, then those of installed packages. Raises GamMergeError."""
    found: dict[str, Card] = {card.name: card for card in (*_RULES, *_SPACES, *_PLUGINS)}
    for point in entry_points(group=_GROUP):
        try:
            card = point.load()
        except Exception as error:
            raise GamMergeError(f"method {point.name} of {point.value} cannot be loaded: {error}") from error
        if not isinstance(card, Card):
            raise GamMergeError(f"method {point.name} of {point.value} is no rule, space or plug-in")
        if card.name in found:
            raise GamMergeError(f"two methods are called {card.name!r}; uninstall one of them ({point.value})")
        found[card.name] = card
    return found


def methods() -> tuple[Method, ...]:
    """One method a rule, in its own space. ``get_method`` knows their compositions too. Raises GamMergeError."""
    return tuple(get_method(card.name) for card in cards().values() if isinstance(card, Rule))


def get_method(name: str) -> Method:
    """The method of that name. Raises GamMergeError."""
    words = _ALIASES.get(name, name).split("+")
    found = [_card(name, *word.partition("@")[::2]) for word in words]
    position = [isinstance(card, Rule) for card, _ in found]
    if sum(position) != 1:
        raise GamMergeError(f"method {name!r} has {sum(position)} rules; write [pre+...]rule[@space][+post...]")
    middle = position.index(True)
    rule, where = found[middle]
    assert isinstance(rule, Rule)
    plugins = []
    for i, (card, _) in enumerate(found):
        if i == middle:
            continue
        side = "pre" if i < middle else "post"
        if not isinstance(card, Plugin) or card.side != side:
            raise GamMergeError(f"method {name!r}: {card.name} does not belong {_SIDES[side]} the rule")
        plugins.append(card)
    if where is not None and plugins and not (where.takes == where.gives == "core"):
        raise GamMergeError(f"{name!r}: {plugins[0].name} works in core space, which @{where.name} leaves")
    return Method("+".join(words), rule, where, tuple(plugins))


def _card(method: str, name: str, where: str) -> tuple[Card, Space | None]:
    """The card of a word ``name[@where]`` of a method's name, and its space."""
    known = cards()
    card, space = known.get(name), known.get(where or _SPACE)
    if card is None or isinstance(card, Space):
        names = [*(c.name for c in known.values() if not isinstance(c, Space)), *_ALIASES]
        close = "".join(f", did you mean {match}?" for match in get_close_matches(name, names, 1))
        raise GamMergeError(f"no method is called {name!r}{close}; gam-merge methods lists them (gm.methods())")
    takes_space = isinstance(card, Rule) and card.entries is not None
    if where and not (takes_space and isinstance(space, Space)):
        spaces = ", ".join(c.name for c in known.values() if isinstance(c, Space))
        why = f"the spaces are: {spaces}" if takes_space else f"{name} takes no space"
        raise GamMergeError(f"method {method!r}: {why}")
    named = where or (isinstance(card, Rule) and card.kind == "entries")
    return card, space if named and isinstance(space, Space) else None

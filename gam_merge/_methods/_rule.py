"""What a file of this package declares: a rule, the space that entries are looked at in, or a plug-in around a rule.

A rule is a pure function with a card. Its keyword-only parameters are what users may set. Kinds:

    bucket         (bucket, weights, **params) -> Merged            anything, the fast paths
    core           (core, weights, **params) -> InCore              equivariant under orthonormal changes of basis
    coefficients   (gram, weights, **params) -> Coefficients        the result is sum c_i delta_i
    entries        (entries, weights, **params) -> Tensor           looks at single entries, in a space that is named

``weights`` are (L, N) over the adapters of the bucket.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from torch import Tensor

from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._schema import Param, schema

Kind = Literal["bucket", "core", "coefficients", "entries"]
Rank = Literal["largest", "sum"]


@dataclass(frozen=True)
class Card:
    """What a user must know to choose a method, and what the engine must know to call it."""

    name: str
    function: Callable[..., Any]
    summary: str = ""  # what it computes
    reference: str = ""
    use: str = ""  # when to use it
    avoid: str = ""  # and when not
    breaks: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # property[@space] -> why it does not hold

    @cached_property
    def params(self) -> tuple[Param, ...]:
        return schema(self.function)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        fields = {
            name: getattr(self, name) for name in ("name", "summary", "reference", "use", "avoid")
        }
        return {
            **fields,
            "breaks": dict(self.breaks),
            "params": [param.to_dict() for param in self.params],
        }


@dataclass(frozen=True)
class Rule(Card):
    """``rank``: of the result without a cut, the largest of the sources or their sum. With ``normalize`` weights are
    not negative and sum to one over the bucket, and the engine scales the result by the part of all weight that its
    adapters hold; without it they are the user's own, one each by default."""

    kind: Kind = "bucket"
    rank: Rank = "sum"
    normalize: bool = True
    adapters: int | None = None  # how many it takes, if not any number
    composes: bool = True  # plug-ins may stand around it: it gives the same in core space
    entries: Callable[..., Tensor] | None = (
        None  # the rule on entries, so that it can be named with a space
    )
    survey: Callable[..., Any] | None = (
        None  # (bucket, weights, **params) -> summary, added up over all buckets
    )


@dataclass(frozen=True)
class Space(Card):
    """Where an ``entries`` rule looks: ``function(core or bucket, weights, **params) -> View``."""

    takes: Literal["core", "bucket"] = "core"
    gives: Literal["core", "merged"] = "core"
    rank: Rank = "sum"
    reads_factors: bool = False
    single: bool = False  # takes one module at a time, since its matrices are large


@dataclass(frozen=True)
class Plugin(Card):
    """Wraps a rule in core space: ``function(core, weights, rule, **params) -> InCore``."""

    side: Literal["pre", "post"] = "pre"
    reads_factors: bool = False


CoreRule = Callable[[Core, Tensor], InCore]  # what a plug-in wraps: core, weights (L, N)


class Coefficients(NamedTuple):
    """c (L, N) and what was doubtful about it, for which modules."""

    c: Tensor
    warnings: Mapping[str, Tensor] = {}


def rule(kind: Kind, name: str, **card: Any) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the decorated function as a rule of that kind."""
    if kind == "entries":
        return lambda function: Rule(name, function, kind=kind, entries=function, **card)
    return lambda function: Rule(name, function, kind=kind, **card)


def space(name: str, **card: Any) -> Callable[[Callable[..., Any]], Space]:
    """Declare the decorated function as a space."""
    return lambda function: Space(name, function, **card)


def plugin(
    side: Literal["pre", "post"], name: str, **card: Any
) -> Callable[[Callable[..., Any]], Plugin]:
    """Declare the decorated function as a plug-in that comes before or after a rule."""
    return lambda function: Plugin(name, function, side=side, **card)

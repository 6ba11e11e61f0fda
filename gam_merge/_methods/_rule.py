"""The parts of a method: a rule, a space for a rule on entries, plug-ins around a rule.

Each is a pure function with a card. Its keyword-only parameters are what users may set. Kinds of
rules:

    bucket        (bucket, weights, **params) -> Merged        anything, the fast paths
    core          (core, weights, **params) -> InCore          equivariant under changes of basis
    coefficients  (gram, weights, **params) -> Coefficients    the result is sum c_i delta_i
    entries       (entries, weights, **params) -> Tensor       looks at single entries, in a space
    choice        (summary) -> Choice                          names the rule that merges

``weights`` are (L, N) over the adapters of the bucket. ``summary`` is what the survey of a rule has
seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from torch import Tensor

from gam_merge._common.types import NativeRank
from gam_merge._deltas.core import Core, InCore
from gam_merge._methods._schema import Param, schema

Kind = Literal["bucket", "core", "coefficients", "entries", "choice"]
Side = Literal["pre", "post"]
Subject = Literal["core", "spectrum"]


@dataclass(frozen=True)
class Card:
    """The facts by which users choose a method, and the function that the engine calls."""

    name: str
    function: Callable[..., Any]
    summary: str = ""  # what it computes
    reference: str = ""
    use: str = ""  # when to use it
    avoid: str = ""  # and when not
    # property or property@space -> why it does not hold
    breaks: Mapping[str, str] = field(default_factory=dict[str, str])

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """The parameters that users may set."""
        return schema(self.function)

    def to_dict(self) -> dict[str, Any]:
        """Return the card as plain data for JSON."""
        return {
            "name": self.name,
            "summary": self.summary,
            "reference": self.reference,
            "use": self.use,
            "avoid": self.avoid,
            "breaks": dict(self.breaks),
            "params": [param.to_dict() for param in self.params],
        }


@dataclass(frozen=True)
class Rule(Card):
    """How deltas become one. ``rule`` explains the fields."""

    kind: Kind = "bucket"
    rank: NativeRank = "sum"
    normalize: bool = True
    adapters: int | None = None
    composes: bool = True
    entries: Callable[..., Tensor] | None = None
    survey: Callable[..., Any] | None = None
    reads_factors: bool = False
    anchored: bool = False


@dataclass(frozen=True)
class Space(Card):
    """The matrices that a rule on entries looks at. ``space`` explains the fields."""

    takes: Literal["core", "bucket"] = "core"
    gives: Literal["core", "merged"] = "core"
    rank: NativeRank = "sum"
    reads_factors: bool = False
    single: bool = False


@dataclass(frozen=True)
class Plugin(Card):
    """A change before or after a rule. ``plugin`` explains the fields."""

    side: Side = "pre"
    on: Subject = "core"
    reads_factors: bool = False


CoreRule = Callable[[Core, Tensor], InCore]  # what a plug-in wraps: core, weights (L, N)


class Coefficients(NamedTuple):
    """The answer of a rule of the kind ``coefficients``: the merge is sum c_i delta_i.

    ``warnings`` says what was doubtful, and in which modules.

    Example:
        >>> import torch
        >>> from gam_merge.rules import Coefficients
        >>> Coefficients(torch.tensor([[0.5, 0.5]])).c.sum().item()
        1.0
    """

    c: Tensor  # (L, N)
    warnings: Mapping[str, Tensor] = {}  # text -> (L,) bool


@dataclass(frozen=True)
class Choice:
    """The method that a rule of the kind ``choice`` takes, and why.

    Attributes:
        by: the rule that chose.
        method: the method that merges.
        params: its parameters, as far as they are not those of the user.
        reason: why, in words.
        figures: what the choice rests on.
        otherwise: what to do for something else.

    Example:
        >>> gm.merge(["examples/adapters/addition"]).report.choice.method
        'gam'
    """

    by: str
    method: str
    params: Mapping[str, Any]
    reason: str
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    otherwise: str = ""

    def __str__(self) -> str:
        params = "".join(f" {name}={value}" for name, value in self.params.items())
        otherwise = f"; {self.otherwise}" if self.otherwise else ""
        return f"{self.by}: {self.method}{params} ({self.reason}){otherwise}"


def rule(
    kind: Kind,
    name: str,
    *,
    summary: str = "",
    reference: str = "",
    use: str = "",
    avoid: str = "",
    breaks: Mapping[str, str] | None = None,
    rank: NativeRank = "sum",
    normalize: bool = True,
    adapters: int | None = None,
    composes: bool = True,
    entries: Callable[..., Tensor] | None = None,
    survey: Callable[..., Any] | None = None,
    reads_factors: bool = False,
    anchored: bool = False,
) -> Callable[[Callable[..., Any]], Rule]:
    """Declare the decorated function as a rule: how deltas become one.

    To make it a method that users can name, on the command line too, list it in your package's
    entry points under ``gam_merge.methods``. What the function takes and gives depends on its kind:

    - "core": ``(core, weights) -> InCore``. Sees the deltas as small matrices in one pair of
      orthonormal bases. The result must not depend on the choice of these bases.
    - "coefficients": ``(gram, weights) -> Coefficients``. Sees the inner products of the deltas,
      (L, N, N).
    - "entries": ``(entries, weights) -> Tensor``. Sees single entries, in a space that users name.
    - "bucket": ``(bucket, weights) -> Merged``. Sees everything.
    - "choice": ``(summary) -> Choice``. Names the method that merges, after its ``survey`` has seen
      a sample of the modules. ``summary`` is None if that saw nothing.

    Weights are (L, N) for L modules and N adapters. Keyword-only parameters, each annotated with a
    type, a ``Range`` if it is a number, and a text, are what users may set.

    Args:
        kind: What the function takes and gives.
        name: What users call the method.
        summary: What it computes, in one line.
        reference: Where it was published.
        use: When to use it.
        avoid: When not to use it.
        breaks: Properties that do not hold and why, such as ``{"identity": "..."}``;
            docs/methods.md lists them.
        rank: Rank of the result before any cut: the "largest" of the sources or their "sum".
        normalize: Whether weights are shares that sum to one per module. If an adapter lacks the
            module, the result is then scaled by the share of the others. Otherwise they are the
            user's own factors, 1 by default.
        adapters: How many adapters it takes, if not any number.
        composes: Whether plug-ins may stand around it, that is, whether it gives the same result
            in core space.
        entries: The same rule on entries, for a rule of another kind that may also be named with
            a space.
        survey: ``(bucket, weights, **params) -> summary``, run on all modules before the first is
            merged. Summaries are added up with ``+``, and a rule of the kind "bucket" gets the sum
            as ``summary``.
        reads_factors: Whether a rule of the kind "bucket" needs ``bucket.factors``.
        anchored: Whether the result depends on ``bucket.anchor``, unless a parameter ``anchor`` is
            set away from "adapter". For other rules a user who names an anchor gets a note.

    Returns:
        A decorator that turns the function into a rule; ``rule.function`` is the function itself.

    Example:
        >>> from typing import Annotated
        >>> import torch
        >>> from gam_merge.rules import Coefficients, Range, rule
        >>> @rule(
        ...     "coefficients",
        ...     "loudest",
        ...     summary="the delta with the largest norm",
        ...     use="where one adapter per module should win",
        ...     avoid="where all adapters should have a say",
        ...     rank="largest",
        ... )
        ... def loudest(gram, weights, *, gain: Annotated[float, Range(0, 10), "factor"] = 1.0):
        ...     squared_norms = gram.diagonal(dim1=-2, dim2=-1)  # (L, N)
        ...     winner = squared_norms == squared_norms.amax(-1, keepdim=True)
        ...     return Coefficients(gain * winner.double())
        >>> gram = torch.tensor([[[1.0, 0.2], [0.2, 4.0]]])  # one module, two adapters
        >>> loudest.function(gram, torch.tensor([[0.5, 0.5]]), gain=2.0).c.tolist()
        [[0.0, 2.0]]
        >>> [(param.name, param.allowed) for param in loudest.params]
        [('gain', 'a number in [0, 10]')]
    """

    def declare(function: Callable[..., Any]) -> Rule:
        return Rule(
            name,
            function,
            summary=summary,
            reference=reference,
            use=use,
            avoid=avoid,
            breaks=breaks or {},
            kind=kind,
            rank=rank,
            normalize=normalize,
            adapters=adapters,
            composes=composes,
            entries=function if kind == "entries" else entries,
            survey=survey,
            reads_factors=reads_factors,
            anchored=anchored,
        )

    return declare


def space(
    name: str,
    *,
    summary: str = "",
    reference: str = "",
    use: str = "",
    avoid: str = "",
    breaks: Mapping[str, str] | None = None,
    takes: Literal["core", "bucket"] = "core",
    gives: Literal["core", "merged"] = "core",
    rank: NativeRank = "sum",
    reads_factors: bool = False,
    single: bool = False,
) -> Callable[[Callable[..., Any]], Space]:
    """Declare the decorated function as a space: what a rule on entries looks at.

    The function is ``(core or bucket, weights, **params) -> View``: it shows the deltas as
    matrices, and knows the way back from the merged ones. The matrices should depend on the deltas
    alone, not on how they are factored: orient singular vectors with ``core.orient``.

    Args:
        name: What users write after ``@``.
        summary: What its matrices hold, in one line.
        reference: Where it was published.
        use: When to use it.
        avoid: When not to use it.
        breaks: Properties that rules lose in this space, and why.
        takes: Whether the function gets a "core" or a "bucket".
        gives: What ``View.lift`` returns: "core" for an InCore, "merged" for a Merged. A space that
            takes buckets gives "merged". Plug-ins need a space that takes and gives cores.
        rank: Rank of the result before any cut: the "largest" of the sources or their "sum".
        reads_factors: Whether it needs ``bucket.factors``, the factors as they were read.
        single: Whether it takes one module at a time, since its matrices are large.

    Returns:
        A decorator that turns the function into a space.

    Example:
        >>> import torch
        >>> from gam_merge.rules import InCore, Part, View, space, weighted_sum
        >>> @space("mean_basis", summary="the deltas in singular bases of their mean")
        ... def mean_basis(core, weights):
        ...     u, _, vt = torch.linalg.svd(weighted_sum(weights, core.m))  # (L, K, K), (L, J, J)
        ...     u, v = core.orient(u, vt.mT)
        ...     def lift(merged):
        ...         (x,) = merged[0]()  # (L, K, J): the whole of the one part, in one block
        ...         return InCore(u @ x @ v.mT)
        ...     x = u.unsqueeze(1).mT @ core.m @ v.unsqueeze(1)  # (L, N, K, J)
        ...     return View([Part.of("mean_basis", x)], lift)
        >>> mean_basis.takes, mean_basis.gives
        ('core', 'core')
    """

    def declare(function: Callable[..., Any]) -> Space:
        return Space(
            name,
            function,
            summary=summary,
            reference=reference,
            use=use,
            avoid=avoid,
            breaks=breaks or {},
            takes=takes,
            gives=gives,
            rank=rank,
            reads_factors=reads_factors,
            single=single,
        )

    return declare


def plugin(
    side: Side,
    name: str,
    *,
    summary: str = "",
    reference: str = "",
    use: str = "",
    avoid: str = "",
    breaks: Mapping[str, str] | None = None,
    on: Subject = "core",
    reads_factors: bool = False,
) -> Callable[[Callable[..., Any]], Plugin]:
    """Declare the decorated function as a plug-in: what is done before or after a rule.

    The function is ``(core, weights, rule, **params) -> InCore``, and calls ``rule(core, weights)``
    itself: what comes before changes the core that it hands on, what comes after changes the
    result. One that changes singular values alone is ``(s, size, **params) -> s``, from and to
    (L, k), falling, and may follow a rule in any space; ``size`` is for ``significant``.

    Args:
        side: Whether its name comes before ("pre") or after ("post") the name of the rule.
        name: What users write before or after the rule; its parameters are set as
            ``name.parameter``.
        summary: What it does, in one line.
        reference: Where it was published.
        use: When to use it.
        avoid: When not to use it.
        breaks: Properties that rules lose with it, and why.
        on: What it changes: the "core", or the "spectrum" of the result.
        reads_factors: Whether it needs ``core.read_lefts``, the factors as they were read.

    Returns:
        A decorator that turns the function into a plug-in.

    Example:
        >>> from typing import Annotated
        >>> import torch
        >>> from gam_merge.rules import Range, plugin
        >>> @plugin("post", "limit", summary="no module louder than its loudest delta")
        ... def limit(core, weights, rule, *, times: Annotated[float, Range(0), "louder"] = 1.0):
        ...     merged = rule(core, weights)
        ...     norm = torch.linalg.matrix_norm(merged.x)  # (L,)
        ...     gain = (times * core.norms.amax(-1) / norm).clamp(max=1.0)
        ...     return merged._replace(x=gain[:, None, None] * merged.x)
        >>> limit.params[0].name, limit.params[0].allowed
        ('times', 'a number >= 0')
    """

    def declare(function: Callable[..., Any]) -> Plugin:
        return Plugin(
            name,
            function,
            summary=summary,
            reference=reference,
            use=use,
            avoid=avoid,
            breaks=breaks or {},
            side=side,
            on=on,
            reads_factors=reads_factors,
        )

    return declare

"""A method: a rule and what it is composed with, as users choose it and set its parameters."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.types import NativeRank
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._deltas.core import by_span
from gam_merge._methods._compose import Step, Survey, needs_core, surveys
from gam_merge._methods._rule import Card, Choice, Plugin, Rule, Space
from gam_merge._methods._schema import Param, Range, schema, validate


@dataclass(frozen=True)
class Method:
    """A rule with the space and the plug-ins that its name asks for; see ``get_method``.

    Example:
        >>> method = gm.get_method("ties@knots")
        >>> method.summary
        'trim small entries, elect a sign per entry, average the entries that agree with it'
        >>> [param.name for param in method.params]
        ['density', 'sign', 'scope', 'scale', 'rescale']
        >>> method.breaks["identity"]
        'small entries of a single adapter are trimmed too'
    """

    name: str
    rule: Rule
    space: Space | None
    plugins: tuple[Plugin, ...]  # in the order of their names
    step: Step = field(repr=False, compare=False)  # what it does to a bucket

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        from gam_merge._methods import get_method

        return get_method, (self.name,)  # methods travel to workers by name

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """The parameters that users may set; those of a plug-in are called ``plugin.name``."""
        params = list(self.rule.params)
        if self.space is not None:
            params += self.space.params
        if self.rule.kind == "coefficients":
            params += _SCOPE
        for plugin in self.plugins:
            params += [replace(p, name=f"{plugin.name}.{p.name}") for p in plugin.params]
        return (*params, *_COMMON)

    @property
    def summary(self) -> str:
        """The computation in one line."""
        return self.rule.summary

    @property
    def adapters(self) -> int | None:
        """The number of adapters that it takes, if not any number."""
        return self.rule.adapters

    @property
    def normalize(self) -> bool:
        """Whether weights are shares of one."""
        return self.rule.normalize

    @property
    def rank(self) -> NativeRank:
        """The rank of an uncut result: the largest of the sources or their sum."""
        return self.rule.rank if self.space is None else self.space.rank

    @property
    def chooses(self) -> bool:
        """Whether it names the method that merges, once it has seen some of the deltas."""
        return self.rule.kind == "choice"

    @property
    def reads_factors(self) -> bool:
        """Whether it needs the factors as they were read."""
        in_space = self.space is not None and self.space.reads_factors
        in_rule = self.rule.reads_factors
        return in_rule or in_space or any(plugin.reads_factors for plugin in self.plugins)

    @property
    def breaks(self) -> dict[str, str]:
        """The properties that do not hold, and why."""
        cards: list[Card] = [self.rule, *self.plugins]
        if self.space is not None:
            cards.insert(1, self.space)
        breaks = {}
        for card in cards:
            for key, why in card.breaks.items():
                name, _, space = key.partition("@")
                if not space or (self.space is not None and space == self.space.name):
                    breaks[name] = why
        return breaks

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON: what it computes, when to use it, what may be set."""
        return {
            **self.rule.to_dict(),
            "name": self.name,
            "rank": self.rank,
            "weights": "shares" if self.normalize else "factors",
            "in_spaces": self.rule.entries is not None,
            "breaks": self.breaks,
            "params": [param.to_dict() for param in self.params],
        }

    def validate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, defaults filled in. Raises GamMergeError."""
        return validate(self.name, self.params, given)

    def check_count(self, count: int) -> None:
        """Raise GamMergeError if it does not take that many adapters."""
        if self.rule.adapters not in (None, count):
            noun = "adapter" if self.rule.adapters == 1 else "adapters"
            raise GamMergeError(
                f"{self.name} takes {self.rule.adapters} {noun}, got {count}; mean takes any number"
            )

    def parts(self, bucket: Bucket) -> Iterator[Bucket]:
        """Split a bucket into the pieces that ``merge`` takes."""
        parts = iter((bucket,))
        if needs_core(self.rule, self.space, self.plugins):
            parts = by_span(bucket)
        if self.space is None or not self.space.single:
            return parts
        return _single(parts)

    def takes_one_weight(self, params: Mapping[str, Any]) -> bool:
        """Tell whether an adapter must have one weight in all modules."""
        return params.get("scope") == "global"

    def takes_anchor(self, params: Mapping[str, Any]) -> bool:
        """Tell whether the result depends on which adapter is the anchor."""
        return self.rule.anchored and params.get("anchor", "adapter") == "adapter"

    def surveys(self, params: Mapping[str, Any]) -> tuple[Survey, ...]:
        """Return the passes that must run on all buckets before the first is merged, if any.

        Each gets the sum of what those before it gave, and gives summaries that add up with ``+``;
        ``merge`` takes the sum of all.
        """
        return surveys(self.rule, self.space, params)

    def choose(self, summary: Any) -> Choice:
        """Return the method that merges, from what its survey has seen, None if that is nothing."""
        choice: Choice = self.rule.function(summary)
        return choice

    def merge(
        self, bucket: Bucket, weights: Tensor, *, summary: Any = None, **params: Any
    ) -> Merged:
        """Merge a bucket, before the cut to the output rank.

        weights: (L, N). params: as ``validate`` gave them.
        """
        return self.step(bucket, weights, summary, params)


def _single(parts: Iterator[Bucket]) -> Iterator[Bucket]:
    """One module at a time."""
    for part in parts:
        for j in range(len(part.names)):
            yield part.select(torch.tensor([j]), wide=False)


def _common(
    *,
    scale: Annotated[float, Range(0), "factor that the result is multiplied by"] = 1.0,
    rescale: Annotated[
        Literal["none", "norm"], "norm: bring each module to the mean norm of its deltas"
    ] = "none",
) -> None: ...


def _scope(
    *,
    scope: Annotated[
        Literal["module", "global"], "one set of coefficients per module, or one for all modules"
    ] = "module",
) -> None: ...


_COMMON, _SCOPE = schema(_common), schema(_scope)

"""A method is a composition: plug-ins around a rule, in a space, then a scale.

Tensor legend: ``N`` adapters, ``L`` modules in the bucket, ``R`` sum of ranks, ``K`` and ``J`` sides of a core.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._deltas.core import Core, InCore, by_span, core_of
from gam_merge._methods._entries import Histogram, merge_part
from gam_merge._methods._rule import Coefficients, Plugin, Rank, Rule, Space
from gam_merge._methods._schema import Param, Range, schema, validate
from gam_merge._methods._survey import GramSummary, inner_products
from gam_merge._methods.linear import combination


@dataclass(frozen=True)
class Method:
    """A rule, ready to be run on buckets. ``plugins`` are in the order of their names, those before the rule first."""

    name: str
    rule: Rule
    space: Space | None = None
    plugins: tuple[Plugin, ...] = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        from gam_merge._methods import get_method

        return get_method, (self.name,)  # methods travel to workers by name

    @cached_property
    def params(self) -> tuple[Param, ...]:
        """Everything that a user may set: of the rule, of the space, of the plug-ins by ``plugin.name``, of all."""
        own = [*self.rule.params, *(self.space.params if self.space else ())]
        around = [
            replace(p, name=f"{plugin.name}.{p.name}")
            for plugin in self.plugins
            for p in plugin.params
        ]
        return (*own, *(_SCOPE if self.rule.kind == "coefficients" else ()), *around, *_COMMON)

    @property
    def summary(self) -> str:
        """What it computes."""
        return self.rule.summary

    @property
    def adapters(self) -> int | None:
        """How many it takes, if not any number."""
        return self.rule.adapters

    @property
    def normalize(self) -> bool:
        return self.rule.normalize

    @property
    def rank(self) -> Rank:
        """Of the result without a cut: the largest of the sources or their sum."""
        return self.space.rank if self.space else self.rule.rank

    @property
    def reads_factors(self) -> bool:
        """Whether it needs the factors as they were read."""
        return bool(self.space and self.space.reads_factors) or any(
            p.reads_factors for p in self.plugins
        )

    @property
    def breaks(self) -> dict[str, str]:
        """The properties that do not hold, and why."""
        cards = (self.rule, *((self.space,) if self.space else ()), *self.plugins)
        found = {tuple(name.split("@")): why for card in cards for name, why in card.breaks.items()}
        here = self.space.name if self.space else ""
        return {name: why for (name, *where), why in found.items() if here in where or not where}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what it computes, when to use it, what may be set."""
        return {
            **self.rule.to_dict(),
            "name": self.name,
            "rank": self.rank,
            "weights": "shares" if self.normalize else "factors",
            "in_spaces": self.rule.entries is not None,
            "breaks": self.breaks,
            "params": [param.to_dict() for param in self.params],
        }

    @property
    def _in_core(self) -> bool:
        if self.space:
            return self.space.takes == "core"
        return self.rule.kind == "core" or bool(self.plugins)

    def validate(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters, defaults filled in. Raises GamMergeError."""
        return validate(self.name, self.params, given)

    def check_count(self, count: int) -> None:
        """Raises GamMergeError if it does not take so many adapters."""
        if self.rule.adapters not in (None, count):
            raise GamMergeError(
                f"{self.name} takes {self.rule.adapters} adapters, not {count}; mean takes any number"
            )

    def parts(self, bucket: Bucket) -> Iterator[Bucket]:
        """The bucket in pieces that ``merge`` takes."""
        parts = by_span(bucket) if self._in_core else iter((bucket,))
        if self.space is None or not self.space.single:
            return parts
        return (
            part.select(torch.tensor([j]), wide=False)
            for part in parts
            for j in range(len(part.names))
        )

    def survey(self, params: Mapping[str, Any]) -> Callable[[Bucket, Tensor], Any] | None:
        """A first pass over all buckets, where the method needs one: gives summaries that add up with ``+``."""
        if self.rule.survey is not None:
            return partial(self.rule.survey, **_own(params, self.rule))
        if params.get("scope") != "global":
            return None
        if self.rule.kind == "coefficients":
            return GramSummary.of
        return partial(self._histogram, params)

    def merge(
        self, bucket: Bucket, weights: Tensor, *, summary: Any = None, **params: Any
    ) -> Merged:
        """The merged bucket, before the cut to the output rank. weights: (L, N); params: as ``validate`` gave them."""
        merged = self._run(bucket, weights, summary, params)
        c: Tensor | float = params["scale"]
        if params["rescale"] == "norm":
            share = weights.abs() / weights.abs().sum(-1, keepdim=True)  # (L, N)
            length = merged.norm(bucket)
            c = c * torch.where(length > 0, (share * bucket.norms).sum(-1) / length, 1.0)
        return merged.scaled(c)

    def _run(
        self, bucket: Bucket, weights: Tensor, summary: Any, params: Mapping[str, Any]
    ) -> Merged:
        if not self._in_core:
            if self.space:
                return self._in_space(bucket, bucket, weights, summary, params)
            if self.rule.kind == "coefficients":
                c, warnings = self._coefficients(bucket, weights, summary, params)
                return replace(combination(bucket, c), warnings=warnings)
            more = {} if summary is None else {"summary": summary}
            return self.rule.function(bucket, weights, **more, **_own(params, self.rule))
        core = core_of(bucket)
        if self.space and self.space.gives == "merged":
            return self._in_space(core, bucket, weights, summary, params)
        run: Callable[[Core, Tensor], InCore] = partial(
            self._run_in_core, summary=summary, params=params
        )
        for plugin in sorted(self.plugins, key=lambda p: p.side == "post"):
            run = partial(plugin.function, rule=run, **_own(params, plugin, f"{plugin.name}."))
        return core.lift(run(core, weights))

    def _run_in_core(
        self, core: Core, weights: Tensor, summary: Any, params: Mapping[str, Any]
    ) -> InCore:
        own = _own(params, self.rule)
        if self.space:
            return self._in_space(core, core.bucket, weights, summary, params)
        if self.rule.kind == "core":
            return self.rule.function(core, weights, **own)
        if self.rule.kind == "coefficients":
            c, warnings = self._coefficients(core.small(), weights, summary, params)
            return InCore((c[..., None, None] * core.m).sum(1), warnings)
        small = core.small()
        merged = self.rule.function(small, weights, **own)
        b, a = merged.sides(small)
        left, right = (
            torch.cat(list(b), -1) @ merged.left,
            torch.cat(list(a), -1) @ merged.right,
        )  # (L, K, k), (L, J, k)
        return InCore(left @ right.mT, merged.warnings)

    def _in_space(
        self,
        what: Core | Bucket,
        bucket: Bucket,
        weights: Tensor,
        summary: Any,
        params: Mapping[str, Any],
    ) -> Any:
        assert self.space is not None
        assert self.rule.entries is not None
        view = self.space.function(what, weights, **_own(params, self.space))
        rule = partial(self.rule.entries, **_own(params, self.rule))
        merged = []
        for part in view.parts:
            w = weights if self.normalize else part.weights(weights)
            merged.append(merge_part(part, bucket, rule, w, summary))
        return view.lift(merged)

    def _histogram(self, params: Mapping[str, Any], bucket: Bucket, weights: Tensor) -> Histogram:
        assert self.space is not None
        what = core_of(bucket) if self._in_core else bucket
        return Histogram.of(self.space.function(what, weights, **_own(params, self.space)), bucket)

    def _coefficients(
        self,
        bucket: Bucket,
        weights: Tensor,
        summary: GramSummary | None,
        params: Mapping[str, Any],
    ) -> Coefficients:
        run = partial(self.rule.function, **_own(params, self.rule))
        if summary is None:
            return run(inner_products(bucket), weights)
        return summary.on(bucket, run)


def _common(
    *,
    scale: Annotated[float, Range(0), "multiplies the result"] = 1.0,
    rescale: Annotated[
        Literal["none", "norm"], "norm: bring each module to the mean norm of the deltas"
    ] = "none",
) -> None: ...


def _scope(
    *,
    scope: Annotated[
        Literal["module", "global"], "one set of coefficients a module, or one for all"
    ] = "module",
) -> None: ...


_COMMON, _SCOPE = schema(_common), schema(_scope)


def _own(
    params: Mapping[str, Any], card: Rule | Space | Plugin, prefix: str = ""
) -> dict[str, Any]:
    return {param.name: params[prefix + param.name] for param in card.params}

"""Methods at work, composed once: plug-ins around a rule, in a space, then a scale.

Each function returns a step, and says what the step does. The kinds of the parts are looked at here
and not at each call. Parameters come with each call, since they may differ between modules.

Tensor legend: ``N`` adapters, ``L`` modules in the bucket, ``K`` and ``J`` sides of a core, ``k``
rank of a result.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gam_kernels import compress
from gam_merge._common.errors import GamMergeError
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._deltas.core import Core, InCore, core_of
from gam_merge._methods._entries import EntryRule, Histogram, View, merge_part, ranks_of
from gam_merge._methods._gram import GramSummary, inner_products
from gam_merge._methods._rule import Card, Coefficients, Plugin, Rule, Space
from gam_merge._methods.linear import combination

Params = Mapping[str, Any]  # of the whole method, all of them
Step = Callable[[Bucket, Tensor, Any, Params], Merged]  # bucket, weights (L, N), summary, params
CoreStep = Callable[[Core, Tensor, Any, Params], InCore]  # the same in core space
# A pass: bucket, weights (L, N), the sum of what was found before -> a summary.
Survey = Callable[[Bucket, Tensor, Any], Any]


def compose(rule: Rule, space: Space | None, plugins: Sequence[Plugin]) -> Step:
    """Return the step that merges a bucket."""
    if rule.kind == "choice":
        return undecided(rule)
    if leaves_core(rule, space):
        step = on_buckets(rule) if space is None else in_space(rule, space)
        for plugin in plugins:
            step = respread(plugin, step)
        return rescaled(step)
    if needs_core(rule, space, plugins):
        return rescaled(on_cores(around(plugins, core_step(rule, space))))
    if rule.kind == "coefficients":
        return rescaled(combined_by(rule))
    return rescaled(on_buckets(rule))


def leaves_core(rule: Rule, space: Space | None) -> bool:
    """Return whether a result is not in core space, where only spectra can be changed."""
    if space is not None:
        return space.gives == "merged"
    return not rule.composes


def needs_core(rule: Rule, space: Space | None, plugins: Sequence[Plugin]) -> bool:
    """Return whether a method looks at cores, for which the span of the deltas must be known."""
    if space is not None:
        return space.takes == "core"
    return rule.kind == "core" or (rule.composes and bool(plugins))


def core_step(rule: Rule, space: Space | None) -> CoreStep:
    """Return the step of a rule of any kind in core space."""
    if space is not None:
        return on_entries(rule, space)
    steps = {"core": on_core, "coefficients": combined_cores_by, "bucket": on_small_buckets}
    return steps[rule.kind](rule)


def rescaled(step: Step) -> Step:
    """Multiply a result by ``scale``; with ``rescale=norm``, by mean |delta| / |result| first."""

    def rescaled_step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        merged = step(bucket, weights, summary, params)
        c: Tensor | float = params["scale"]
        if params["rescale"] == "norm":
            share = weights.abs() / weights.abs().sum(-1, keepdim=True)  # (L, N)
            length = merged.norm(bucket)  # (L,)
            c = c * torch.where(length > 0, (share * bucket.norms).sum(-1) / length, 1.0)
        return merged.scaled(c)

    return rescaled_step


def respread(plugin: Plugin, step: Step) -> Step:
    """Change the singular values of a result."""

    def respread_step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        merged = step(bucket, weights, summary, params)
        left, right, s = merged.left, merged.right, merged.s
        if s is None:
            left, right, s = compress(left, right, *merged.grams(bucket))
        options = params_of(plugin, params, prefix=f"{plugin.name}.")
        changed = plugin.function(s, max(bucket.shape), **options)  # (L, k)
        root = torch.where(s > 0, changed / s, 0.0).sqrt().unsqueeze(-2)
        return replace(merged, left=left * root, right=right * root, s=changed)

    return respread_step


def undecided(rule: Rule) -> Step:
    """Merge nothing: a choice must have been made before."""

    def step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        raise GamMergeError(
            f"{rule.name} names a method and merges no bucket itself; use gam_merge.merge"
        )

    return step


# On buckets.


def on_buckets(rule: Rule) -> Step:
    """Run a rule of the kind ``bucket``."""

    def step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        surveyed = {} if summary is None else {"summary": summary}
        return rule.function(bucket, weights, **surveyed, **params_of(rule, params))

    return step


def combined_by(rule: Rule) -> Step:
    """Sum the deltas with the coefficients of a rule: sum c_i delta_i."""

    def step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        c, warnings = coefficients(rule, bucket, weights, summary, params)
        return replace(combination(bucket, c), warnings=warnings)

    return step


def in_space(rule: Rule, space: Space) -> Step:
    """Run a rule on the entries of a space that gives merged buckets."""

    def step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        seen = seen_by(space, bucket)
        return merge_entries(rule, space, seen, bucket, weights, summary, params)

    return step


def on_cores(run: CoreStep) -> Step:
    """Run a step on the core of a bucket, and lift the result."""

    def step(bucket: Bucket, weights: Tensor, summary: Any, params: Params) -> Merged:
        core = core_of(bucket)
        return core.lift(run(core, weights, summary, params))

    return step


# On cores.


def around(plugins: Sequence[Plugin], run: CoreStep) -> CoreStep:
    """Put plug-ins around a step, the first one innermost: those before a rule come first."""
    for plugin in plugins:
        run = wrapped(plugin, run)
    return run


def wrapped(plugin: Plugin, run: CoreStep) -> CoreStep:
    """Put one plug-in around a step."""

    def step(core: Core, weights: Tensor, summary: Any, params: Params) -> InCore:
        def rule(core: Core, weights: Tensor) -> InCore:
            return run(core, weights, summary, params)

        options = params_of(plugin, params, prefix=f"{plugin.name}.")
        if plugin.on == "core":
            return plugin.function(core, weights, rule=rule, **options)
        merged = rule(core, weights)
        p, s, qt = torch.linalg.svd(merged.x, full_matrices=False)
        changed = plugin.function(s, max(core.bucket.shape), **options)  # (L, k)
        return merged._replace(x=p * changed.unsqueeze(-2) @ qt)

    return step


def on_core(rule: Rule) -> CoreStep:
    """Run a rule of the kind ``core``."""

    def step(core: Core, weights: Tensor, summary: Any, params: Params) -> InCore:
        return rule.function(core, weights, **params_of(rule, params))

    return step


def combined_cores_by(rule: Rule) -> CoreStep:
    """Sum the cores with the coefficients of a rule."""

    def step(core: Core, weights: Tensor, summary: Any, params: Params) -> InCore:
        c, warnings = coefficients(rule, core.small(), weights, summary, params)
        return InCore((c[..., None, None] * core.m).sum(1), warnings)

    return step


def on_small_buckets(rule: Rule) -> CoreStep:
    """Run a rule of the kind ``bucket`` on cores, seen as modules of their own."""

    run = on_buckets(rule)

    def step(core: Core, weights: Tensor, summary: Any, params: Params) -> InCore:
        small = core.small()
        merged = run(small, weights, summary, params)
        b, a = merged.sides(small)
        left = torch.cat(list(b), -1) @ merged.left  # (L, K, k)
        right = torch.cat(list(a), -1) @ merged.right  # (L, J, k)
        return InCore(left @ right.mT, merged.warnings)

    return step


def on_entries(rule: Rule, space: Space) -> CoreStep:
    """Run a rule on the entries of a space that takes and gives cores."""

    def step(core: Core, weights: Tensor, summary: Any, params: Params) -> InCore:
        return merge_entries(rule, space, core, core.bucket, weights, summary, params)

    return step


# What a step does with its rule.


def merge_entries(
    rule: Rule,
    space: Space,
    seen: Core | Bucket,
    bucket: Bucket,
    weights: Tensor,
    summary: Histogram | None,
    params: Params,
) -> Any:
    """Run a rule on each part that a space shows, and go back the way that the space knows."""
    assert rule.entries is not None, "get_method names a space only for rules on entries"
    run = partial(rule.entries, **params_of(rule, params))
    view = space.function(seen, weights, **params_of(space, params))
    merged = []
    for part in view.parts:
        w = weights if rule.normalize else part.weights(weights)
        merged.append(merge_part(part, bucket, run, w, summary))
    return view.lift(merged)


def coefficients(
    rule: Rule, bucket: Bucket, weights: Tensor, summary: GramSummary | None, params: Params
) -> Coefficients:
    """Return the coefficients of a rule, from the inner products in a bucket or in all modules."""
    run = partial(rule.function, **params_of(rule, params))
    if summary is None:
        return run(inner_products(bucket), weights)
    return summary.on(bucket, run)


# Passes over all modules before the first is merged.


def surveys(rule: Rule, space: Space | None, params: Params) -> tuple[Survey, ...]:
    """Return what a method asks of every bucket before the first is merged, pass by pass."""
    if rule.survey is not None:
        return (_single_pass(partial(rule.survey, **params_of(rule, params))),)
    if params.get("scope") != "global":
        return ()
    if rule.kind == "coefficients":
        return (_single_pass(GramSummary.of),)
    assert space is not None, "of all other rules those on entries have a scope"
    assert rule.entries is not None
    return _sizes(partial(rule.entries, **params_of(rule, params)), space, params)


def _single_pass(look: Callable[[Bucket, Tensor], Any]) -> Survey:
    return lambda bucket, weights, before: look(bucket, weights)


def _sizes(rule: EntryRule, space: Space, params: Params) -> tuple[Survey, Survey]:
    """Return the two passes that find global thresholds."""

    def view(bucket: Bucket, weights: Tensor) -> View:
        return space.function(seen_by(space, bucket), weights, **params_of(space, params))

    def coarse(bucket: Bucket, weights: Tensor, before: None) -> Histogram:
        return Histogram.of(view(bucket, weights), bucket, ranks_of(rule))

    def fine(bucket: Bucket, weights: Tensor, before: Histogram) -> Histogram:
        return before.finer(view(bucket, weights), bucket)

    return coarse, fine


def seen_by(space: Space, bucket: Bucket) -> Core | Bucket:
    """Return a bucket as a space takes it."""
    return core_of(bucket) if space.takes == "core" else bucket


def params_of(card: Card, params: Params, *, prefix: str = "") -> dict[str, Any]:
    """Return the parameters of one part of a method."""
    return {param.name: params[prefix + param.name] for param in card.params}

"""The merge methods, one a file: pure functions of a bucket. To add one, write it and register it here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

from gam_merge._bucket import Merged
from gam_merge._errors import GamMergeError
from gam_merge._methods.gam import gam
from gam_merge._methods.linear import mean


@dataclass(frozen=True)
class Method:
    """A method and what the engine must know to call it.

    ``merge(bucket, weights, **params)`` gets weights (L, N) over the adapters of the bucket. With ``normalize`` they
    are not negative and sum to one (the engine scales the result by the part of all weight that is present in the
    bucket); without it they are the user's own.
    """

    name: str
    summary: str
    merge: Callable[..., Merged]
    normalize: bool = True

    def check_params(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, if the method has them all. Raises GamMergeError."""
        known = list(signature(self.merge).parameters)[2:]  # after the bucket and the weights
        for name in params:
            if name not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                raise GamMergeError(f"method {self.name} has no parameter {name!r}; {has}")
        return dict(params)


METHODS = {
    method.name: method
    for method in (
        Method("gam", "align singular subspaces to an anchor by orthogonal Procrustes, then average", gam),
        Method("mean", "exact weighted mean of the deltas, cut to the output rank", mean),
    )
}


def get_method(name: str) -> Method:
    """The method of that name. Raises GamMergeError."""
    if name not in METHODS:
        raise GamMergeError(f"no method is called {name!r}; there are: {', '.join(METHODS)}")
    return METHODS[name]

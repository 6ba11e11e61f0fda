"""NP-LoRA (arXiv 2511.11051): one adapter whole, and what the others do outside its inputs.

    V = right singular vectors of delta_a
    merged = w_a delta_a + sum over i != a of w_i delta_i (I - mu / (1 + mu) V V^T)

It is asymmetric: delta_a is that of the anchor, in the paper a style, to which a subject is added.
mu = 0 is the sum; a large mu projects the others off the row space of delta_a. The paper has two
adapters; any number of others is projected alike here. There is no official code, and the paper's
text was not at hand: two independent implementations of its equation 12 agree on this formula.
"""

from typing import Annotated

from torch import Tensor

from gam_merge._deltas.core import Core, InCore, weighted_sum
from gam_merge._methods._rule import rule
from gam_merge._methods._schema import Range


@rule(
    "core",
    "np_lora",
    summary="keep the anchor whole, and damp what the other adapters do on its input directions",
    reference="arXiv 2511.11051, equation 12, from independent implementations of it",
    use="where one adapter must keep its strength, such as a style that a subject is added to",
    avoid="for adapters of equal standing: the anchor has the say",
    normalize=False,
    anchored=True,
    breaks={
        "equal": "the anchor is whole, and copies of it add their damped share",
        "permutation": "the first adapter is the anchor, unless another is named",
    },
)
def np_lora(
    core: Core,
    weights: Tensor,
    *,
    mu: Annotated[
        float, Range(0), "how far the others are damped there: by mu / (1 + mu); 0 is the sum"
    ] = 0.5,
) -> InCore:
    total = weighted_sum(weights, core.m)  # (L, K, J)
    if core.bucket.anchor not in core.bucket.adapters:
        return InCore(total)
    anchor = core.bucket.adapters.index(core.bucket.anchor)
    kept = weights[:, anchor, None, None] * core.m[:, anchor]
    v = core.rights[anchor]  # (L, J, k)
    return InCore(total - mu / (1 + mu) * (total - kept) @ v @ v.mT)

"""Merges tensors that are not factors, block by block, so that one of them is held at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gam_merge._common.errors import GamMergeError
from gam_merge._common.tensors import blocks, dtype_name
from gam_merge._lineup.extras import LineupExtra
from gam_merge._lineup.lineup import Lineup
from gam_merge._run.job import Job


def share_of_members(extra: LineupExtra, lineup: Lineup, job: Job) -> list[float]:
    """Return the share of each member in the mean. Raises GamMergeError if there is no mean."""
    module = extra.module
    if module in lineup.layouts:
        all_weights = job.settings.weights_of(module)
    else:
        all_weights = job.mean_weights(lineup.names)
    weights = [all_weights[i] for i in extra.adapters]
    total = sum(all_weights if extra.is_delta and job.missing == "zero" else weights)
    if extra.is_delta and not job.method.normalize:
        total = 1.0
    if weights and total <= 0:
        raise GamMergeError(
            f"weights {weights} of tensor {extra.name} have no mean; leave the adapters with it out"
        )
    return [weight / total for weight in weights]


def merge_extra(extra: LineupExtra, shares: Sequence[float], sources: Sequence[str]) -> Tensor:
    """Return the weighted sum of the members, their scale folded in.

    shares: one per member. Raises GamMergeError for NaN or Inf, in a source or from the dtype of
    the output.
    """
    out = torch.zeros(extra.shape, dtype=extra.dtype)
    for pieces in zip(*(blocks(member.tensor) for member in extra.members), strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for k, (member, share) in enumerate(zip(extra.members, shares, strict=True)):
            piece = pieces[k][1]
            if not piece.isfinite().all():
                source = sources[extra.adapters[k]]
                raise GamMergeError(f"{source}: tensor {extra.name} has NaN or Inf; leave it out")
            total = total + share * member.scale * piece.double()
        if not extra.dtype.is_floating_point:
            total = total.round()
        out.view(-1)[pieces[0][0]] = total.to(extra.dtype)
    if not out.isfinite().all():
        dtype = dtype_name(extra.dtype)
        raise GamMergeError(
            f"tensor {extra.name} of the merge does not fit into {dtype}; write bfloat16 or float32"
        )
    return out


def check_equal(extra: LineupExtra, sources: Sequence[str]) -> None:
    """Raise GamMergeError unless all members hold the same values, rounded to their dtypes."""
    first = extra.members[0]
    for i, member in zip(extra.adapters[1:], extra.members[1:], strict=True):
        for (_, x), (_, y) in zip(blocks(first.tensor), blocks(member.tensor), strict=True):
            if not _equal_but_rounded(x, y):
                raise GamMergeError(
                    f"tensor {extra.name} of the base differs between "
                    f"{sources[extra.adapters[0]]} and {sources[i]}; adapters of different base "
                    "models cannot be merged"
                )


def _equal_but_rounded(x: Tensor, y: Tensor) -> bool:
    """Tell whether two tensors are one tensor, each rounded to a dtype of its own."""
    dtypes = _narrowest_dtype(x), _narrowest_dtype(y)
    if dtypes[0] == dtypes[1]:
        return torch.equal(x.double(), y.double())
    relative = sum(torch.finfo(dtype).eps / 2 for dtype in dtypes)
    absolute = sum(torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps for dtype in dtypes)
    return torch.allclose(x.double(), y.double(), rtol=relative, atol=absolute)


def _narrowest_dtype(x: Tensor) -> torch.dtype:
    """Return the narrowest dtype that holds all values of a tensor as they are."""
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if torch.equal(x.double(), x.to(dtype).double()):
            return dtype
    return torch.float64

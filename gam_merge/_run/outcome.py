"""The report of each module of a bucket, from small matrices.

Tensor legend: ``N`` adapters, ``L`` modules at a time, ``m`` out, ``n`` in, ``r`` rank, ``R`` sum
of ranks, ``k`` rank of the output.
"""

import torch
from torch import Tensor

from gam_kernels import norm, product_norm, response
from gam_merge._deltas.bucket import Bucket, Merged
from gam_merge._run.job import Job
from gam_merge._run.lift import Lifted
from gam_merge._run.report import ModuleReport


def _responses(bucket: Bucket, lifted: Lifted) -> tuple[list[Tensor], Tensor]:
    """Return U_i^T merged V_i of each delta, (L, k_i, k_i), and |merged|, (L,).

    From Gram matrices, where they are known.
    """
    if lifted.coefficients is None or bucket.known_grams is None:
        responses = [response(x, lifted.b, lifted.a) for x in bucket.deltas]
        return responses, product_norm(lifted.b, lifted.a)
    left, right = lifted.coefficients
    gram_b, gram_a = bucket.known_grams
    sizes = [x.b.shape[-1] for x in bucket.deltas]
    b, a = (gram_b @ left).split(sizes, -2), (gram_a @ right).split(sizes, -2)  # (L, r_i, k) each
    responses = []
    for x, b_i, a_i in zip(bucket.deltas, b, a, strict=True):
        responses.append((x.u.mT @ b_i) @ (x.v.mT @ a_i).mT)
    return responses, Merged(left, right).norm(bucket)


def module_reports(job: Job, bucket: Bucket, lifted: Lifted) -> list[ModuleReport]:
    """Return what happened to each module, before its factors are rounded to the output dtype."""
    adapters, nothing = len(job.settings.weights), [0.0] * len(bucket.names)
    ranks, norms = [nothing] * adapters, [nothing] * adapters  # (N, L)
    inners, responses = [nothing] * adapters, [nothing] * adapters
    responded, merged = _responses(bucket, lifted)
    for i, delta, within in zip(bucket.adapters, bucket.deltas, responded, strict=True):
        ranks[i], norms[i] = delta.rank.tolist(), norm(delta).tolist()
        inners[i] = (delta.core * within).sum((-2, -1)).tolist()
        responses[i] = within.square().sum((-2, -1)).tolist()
    shares = job.module_weights(bucket.names).abs()
    shares = shares / shares.sum(-1, keepdim=True)  # (L, N)
    mean_norms = (shares * torch.tensor(norms, dtype=torch.float64).T).sum(-1).tolist()
    merged_norms, kept = merged.tolist(), lifted.energy_kept.tolist()
    reports: list[ModuleReport] = []
    for j, name in enumerate(bucket.names):
        warnings = [text for text, modules in lifted.warnings.items() if modules[j]]
        report = ModuleReport(
            name=name,
            shape=bucket.shape,
            ranks=tuple(int(column[j]) for column in ranks),
            norms=tuple(column[j] for column in norms),
            inners=tuple(column[j] for column in inners),
            responses=tuple(column[j] for column in responses),
            mean_norm=mean_norms[j],
            merged_rank=lifted.b.shape[-1] if bucket.deltas else 0,
            merged_norm=merged_norms[j],
            energy_kept=kept[j],
            warnings=tuple(warnings),
            fell_back=bucket.fell_back,
        )
        reports.append(report)
    return reports

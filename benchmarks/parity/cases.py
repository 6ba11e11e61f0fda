"""The comparisons: a method, the official code of its paper, and parameters at which both agree."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from benchmarks.parity.inputs import Problem
from benchmarks.parity.official import Source, Torch, functions, loop
from gam_merge._common.random import generator
from gam_merge._methods.lego import _first, _gram

CPU = SimpleNamespace(device="cpu")
SEED = 0


class Theirs(NamedTuple):
    """What official code gives, dense, and the parameters with which the method should equal it."""

    merged: Tensor
    params: Mapping[str, Any] = {}


Run = Callable[[str, Problem], Theirs]


@dataclass(frozen=True)
class Case:
    """One comparison."""

    method: str
    source: Source
    run: Run
    note: str = ""
    fits: Callable[[Problem], bool] = field(default=lambda problem: True)


CASES: list[Case] = []


def case(
    method: str,
    repository: str,
    commit: str,
    path: str,
    note: str = "",
    fits: Callable[[Problem], bool] = lambda problem: True,
) -> Callable[[Run], Run]:
    """Declare the decorated function as a comparison."""

    def declare(run: Run) -> Run:
        CASES.append(Case(method, Source(repository, commit, path), run, note, fits))
        return run

    return declare


def _vectors(deltas: list[Tensor]) -> list[Any]:
    """Task vectors of one module."""
    return [SimpleNamespace(vector={"w": delta.clone()}) for delta in deltas]


def _config(problem: Problem, **more: Any) -> Any:
    return SimpleNamespace(device="cpu", DATASETS=[""] * len(problem.deltas), **more)


# Spectral rules, on cores: their dense form would fill the null space with arbitrary vectors.

ISO = ("danielm1405/iso-merging", "d34010af8ba129ef4d17a91ca9943b413fe06f8c", "src/utils/iso.py")
CTM = ("ZhengbaoHe/compress-then-merge", "6017d1e5fc293717aacc215d0e42b9f3d75eda86")
CORE = ("apanariello4/core-space-merging", "85176fab749578b0b54a027ea89495846e79757d")
TSV = ("AntoAndGar/task_singular_vectors", "a6c97188f7aa0bb20753de4f2939be89dd64f1c3")
DC = ("Tobeginwith/DC-Merge", "3c443e4d023be34d6868aefb69a4be545871bfbf")
MERGEKIT = ("arcee-ai/mergekit", "a6e402884ba9bc30da7f23e8304a35f19485de95")
FLOAT = {"float32_dtype": torch.float64}


@case("iso_c", *ISO)
def iso_c(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["iso_c"])
    return Theirs(problem.core.lift(code.iso_c(_vectors(problem.core.deltas), CPU)["w"]))


@case("iso_cts", *ISO)
def iso_cts(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["iso_cts"])
    config = _config(problem, method=SimpleNamespace(common_space_fraction=0.8))
    return Theirs(problem.core.lift(code.iso_cts(_vectors(problem.core.deltas), config)["w"]))


@case("iso_cts_r", *CTM, "task_merger.py", fits=lambda x: len(x.deltas) < x.rank)
def iso_cts_r(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["iso_cts"])
    merged = code.iso_cts(None, problem.core.deltas, {"lora_rank": problem.rank})
    return Theirs(problem.core.lift(merged))


@case("tsvm", *TSV, "src/utils/TSVM_utils.py")
def tsvm(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["compute_and_sum_svd_mem_reduction"])
    vectors = _vectors(problem.core.deltas)
    merged = code.compute_and_sum_svd_mem_reduction(vectors, _config(problem))["w"]
    return Theirs(problem.core.lift(merged))


@case("tsvm+isotropize", *CORE, "task_merger.py", "its best published variant")
def tsvm_isotropize(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["get_tsv_delta_w", "isotropize_matrix"])
    merged = code.isotropize_matrix(code.get_tsv_delta_w(None, problem.core.deltas))
    return Theirs(problem.core.lift(merged))


@case("cart", *CTM, "task_merger.py", "c = 0.1, fraction 0.3")
def cart(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["get_cart_delta_w"], math=math, **FLOAT)
    merged = code.get_cart_delta_w(None, problem.core.deltas, 0.3, 0.1)
    return Theirs(problem.core.lift(merged), {"fraction": 0.3, "c": 0.1})


def _dc_merge(text: str, problem: Problem, strategy: str, spectrum: str) -> Theirs:
    text = text.replace("low_rank_per_task = 16", f"low_rank_per_task = {problem.rank}")
    names = ["dc_merge", "keep_topk_percent", "ties_small", "generate_linear_distribution"]
    wide = Torch(linspace=partial(torch.linspace, dtype=torch.float64))
    given = {"tqdm": lambda x, **texts: x, "OrderedDict": OrderedDict, "torch": wide}
    code = functions(text, names, **given)
    merged = code.dc_merge({"w": problem.core.deltas}, strategy)["w"]
    return Theirs(problem.core.lift(merged), {"spectrum": spectrum, "keep": 1e-3})


@case("dc_merge", *DC, "vision_lora_merge/merging_functions.py", "keep = 0.001, its 16 set to r")
def dc_merge(text: str, problem: Problem) -> Theirs:
    return _dc_merge(text, problem, "avg", "average")


@case("dc_merge", *DC, "vision_lora_merge/merging_functions.py", "the same, linear spectrum")
def dc_merge_linear(text: str, problem: Problem) -> Theirs:
    return _dc_merge(text, problem, "linear", "linear")


@case("actmat", "marawangamal/actmat", "42292c7dd08eaefe0c18809dbbaf57eed635b764", "src/merging.py")
def actmat(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["merge_actmat"], pinv=torch.linalg.pinv)
    return Theirs(problem.core.lift(code.merge_actmat(torch.stack(problem.core.deltas))))


@case("star", "IBM/STAR", "e6bfcf70e6f9133141881dc427f81d3f50e463bc", "merger/STAR.py", "eta 0.4")
def star(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["star"])
    return Theirs(sum(code.star(delta, 40) for delta in problem.deltas) / len(problem.deltas))


@case(
    "sum+svc",
    *("lyymuwu/SVC", "6ad2b314b7ae94a4b831e22ca88e4a2ee42098fa", "merge_func.py"),
    "their float32; alpha 1/N",
)
def svc(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["coef_cal_multi_ranks", "Align"])
    code.space["torch"].Tensor.cuda = lambda tensor: tensor
    deltas = problem.core.deltas
    total, options = sum(deltas), SimpleNamespace(right_only=False, target=-1)
    stack = torch.stack(deltas)
    merged = code.Align(_vectors(deltas), "w", stack, total, 1 / len(deltas), options)
    return Theirs(problem.core.lift(merged))


@case(
    "sum+subspace_boost",
    *("arcee-ai/mergekit", "903c1394f40e47e1c241edca4733e5caec8dbfea"),
    "mergekit/subspace_helpers.py",
    "pull request 639, its float32; beta 0.5",
)
def subspace_boost(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["subspace_boosting"])
    total = sum(problem.core.deltas)
    merged = code.subspace_boosting("layers.0.mlp.up_proj.weight", total, svd_thresh=0.5)
    return Theirs(problem.core.lift(merged.double()), {"subspace_boost.beta": 0.5})


# Rules and spaces on entries, on the deltas themselves.


@case(
    "magmax@delta",
    "danielm1405/magmax",
    "4f49f18fb30216d3a0dbe4220b469a3273e45475",
    "src/merging/task_vectors.py",
)
def magmax(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["merge_max_abs"], TaskVector=lambda vector: vector)
    return Theirs(code.merge_max_abs(_vectors(problem.deltas))["w"])


@case(
    "ties@delta",
    "prateeky2806/ties-merging",
    "44e7891fc84f3de7e4caa52664cd864ca3715e91",
    "src/utils/merge_utils.py",
    "with its count of entries; real adapters have equal entries at the threshold",
    fits=lambda problem: not problem.real,
)
def ties(text: str, problem: Problem) -> Theirs:
    names = ["topk_values_mask", "resolve_sign", "resolve_zero_signs", "disjoint_merge"]
    code = functions(text, names)
    size = problem.deltas[0].numel()
    share = (int(0.2 * size) - 0.5) / size  # keeps one more than asked: int(0.2 size)
    flat = torch.stack([delta.flatten() for delta in problem.deltas])
    kept, _ = code.topk_values_mask(flat, share)
    merged = code.disjoint_merge(kept, "dis-mean", code.resolve_sign(kept, "mass"))
    return Theirs(merged.reshape(problem.deltas[0].shape), {"density": 0.2})


@case(
    "knots",
    "gstoica27/KnOTS",
    "baa35e85768b8841820d35edc3e41b25304248c5",
    "task_merger.py",
    "their bases and rows in float32, every entry kept; elected here",
)
def knots(text: str, problem: Problem) -> Theirs:
    names = ["apply_svd", "dict_of_concat_matrices", "variable_extend_dim"]
    given = {"tqdm": lambda x, **texts: x, "deepcopy": deepcopy, "defaultdict": _Lists}
    code = functions(text, names, **given)
    merger = SimpleNamespace(device="cpu")
    for name in names:
        setattr(merger, name, getattr(code, name).__get__(merger))
    basis, _, rows, _ = merger.apply_svd([{"w": delta} for delta in problem.deltas])
    x = torch.stack([row["w"] for row in rows])
    agree = torch.where(x.sum(0) > 0, x > 0, x < 0)
    return Theirs(basis["w"] @ ((x * agree).sum(0) / agree.sum(0).clamp(min=1)), {"density": 1.0})


class _Lists(dict[str, Any]):
    """A defaultdict of lists."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory

    def __missing__(self, key: str) -> Any:
        self[key] = self.factory()
        return self[key]


@case(
    "breadcrumbs@delta",
    *MERGEKIT,
    "mergekit/sparsify.py",
    "density 0.5, gamma 0.1",
    fits=lambda problem: not problem.real,
)
def breadcrumbs(text: str, problem: Problem) -> Theirs:
    given = {"rescaled_masked_tensor": lambda x, mask, rescale: x * mask}
    code = functions(text, ["magnitude_outliers"], **given)
    total = sum(code.magnitude_outliers(delta, 0.5, gamma=0.1) for delta in problem.deltas)
    return Theirs(total, {"density": 0.5, "gamma": 0.1})


def _uniform(problem: Problem, part: str) -> list[Tensor]:
    """The random numbers of the library, for one matrix of every adapter."""
    m, n = problem.deltas[0].shape
    streams = [generator(SEED, f"adapter-{i}#0", "w", part) for i in range(len(problem.deltas))]
    return [torch.rand(m, n, generator=stream, dtype=torch.float64) for stream in streams]


@case(
    "dare@delta",
    "yule-BUAA/MergeLM",
    "6d49ad96fd69c92013654b837041b868aa806564",
    "model_merging_methods/mask_weights_utils.py",
    "with our masks",
)
def dare(text: str, problem: Problem) -> Theirs:
    total = torch.zeros_like(problem.deltas[0])
    for delta, draw in zip(problem.deltas, _uniform(problem, "delta"), strict=True):
        drop = Torch(bernoulli=lambda rates, draw=draw: (draw >= 1 - rates).to(rates.dtype))
        code = functions(text, ["mask_input_with_mask_rate"], torch=drop)
        total += code.mask_input_with_mask_rate(delta, 0.1, True, "random")
    return Theirs(total, {"density": 0.9})


@case(
    "della_linear@delta",
    "declare-lab/della",
    "80675156d6742edb81548c8037947d92dc79dc66",
    "mergekit/mergekit/sparsify.py",
    "with our masks, their float32",
)
def della_linear(text: str, problem: Problem) -> Theirs:
    total = torch.zeros_like(problem.deltas[0])
    for delta, draw in zip(problem.deltas, _uniform(problem, "delta"), strict=True):
        keep = Torch(bernoulli=lambda rates, draw=draw: draw < rates)
        code = functions(text, ["rank_magnitude"], torch=keep, Enum=Enum)
        total += code.rank_magnitude(delta, 0.7, True, 0.15)
    return Theirs(total, {"density": 0.7, "epsilon": 0.15})


DRM = (
    "yophis/decom-renorm-merge",
    "8c0f961cbb58e11f43ea5192fef0c672f270c510",
    "drm/_decom_renorm_merge.py",
)
_DRM = ("zero_out_non_topk", "resolve_elementwise_sign_conflict", "disjoint_averaging", "average")


@case("drm_h", *DRM)
def drm_h(text: str, problem: Problem) -> Theirs:
    code = functions(text, [*_DRM, "right_drm"])
    return Theirs(code.right_drm(torch.stack(problem.deltas), 1.0, None, 0.8))


@case("drm_v", *DRM)
def drm_v(text: str, problem: Problem) -> Theirs:
    code = functions(text, [*_DRM, "left_drm"])
    return Theirs(code.left_drm(torch.stack(problem.deltas), 1.0, None, 0.8))


@case("ctm", *CTM, "task_merger.py", "converged; needs tensorly")
def ctm(text: str, problem: Problem) -> Theirs:
    import tensorly
    from tensorly.decomposition import partial_tucker

    text = text.replace("n_iter_max=1000", "n_iter_max=5000").replace("tol=1e-6", "tol=1e-15")
    names = ["get_low_rank_components_in_core_space", "util_get_core_matrices"]
    plain = SimpleNamespace(time=lambda: 0.0)
    given = {"tl": tensorly, "partial_tucker": partial_tucker, "time": plain, **FLOAT}
    code = functions(text, names, **given)
    merger = SimpleNamespace(device="cpu")
    merger.util_get_core_matrices = code.util_get_core_matrices.__get__(merger)
    bs, as_ = zip(*problem.factors, strict=True)
    find = code.get_low_rank_components_in_core_space
    u, v, cores = find(merger, list(as_), list(bs), rank=problem.rank, beta=0.0)
    return Theirs(u @ (sum(cores) / len(cores)) @ v.T, {"tolerance": 1e-9, "iterations": 5000})


# Rules on factors.


@case(
    "robustmerge",
    "AuroraZengfh/RobustMerge",
    "12128022190516cc93a549cc4931112ce4bdcda3",
    "llava/model/builder.py",
)
def robustmerge(text: str, problem: Problem) -> Theirs:
    bs, as_ = zip(*problem.factors, strict=True)
    given = {
        "clamp": functions(text, ["clamp"]).clamp,
        "concat_model_weights": {"lora_A": torch.stack(as_), "lora_B": torch.stack(bs)},
        "merged_model_weights": {},
        "fuse_weight": torch.full((len(bs), 1, 1), 2.0),
        "mask_ratio": 0.2,
        "att_ratio": 0.2,
    }
    merged = loop(text, "concat_model_weights.items()", **given)["merged_model_weights"]
    return Theirs(merged["lora_B"] @ merged["lora_A"])


def _starts(problem: Problem, distance: str) -> Tensor:
    """The units that k-means starts from: positions (k,)."""
    count = [b.shape[1] for b, _ in problem.factors]
    streams = [generator(SEED, f"adapter-{i}#0", "w", "lego") for i in range(len(count))]
    draws = [
        torch.rand(1, problem.rank, r, generator=stream, dtype=torch.float64)
        for r, stream in zip(count, streams, strict=True)
    ]
    b = torch.cat([b for b, _ in problem.factors], 1)[None]
    a = torch.cat([a.T for _, a in problem.factors], 1)[None]
    first = _first(_gram(b, a, distance), torch.cat(draws, -1)[0, :, None])
    return first[0].argmax(0)


@case("lego", *CTM, "task_merger.py", "a port; our first centres, needs scikit-learn")
def lego_units(text: str, problem: Problem) -> Theirs:
    import sklearn.cluster

    units = torch.cat([torch.cat([a, b.T], 1) for b, a in problem.factors])
    centres, plain = units[_starts(problem, "units")].numpy(), sklearn.cluster.KMeans
    code = functions(text, ["merge_MSUs"])
    sklearn.cluster.KMeans = lambda n_clusters, n_init: plain(n_clusters, init=centres, n_init=1)
    try:
        bs, as_ = zip(*problem.factors, strict=True)
        a, b = code.merge_MSUs(CPU, list(as_), list(bs), problem.rank)
    finally:
        sklearn.cluster.KMeans = plain
    return Theirs(b @ a, {"factors": "read", "restarts": 1, "output_scale": "units"})


@case(
    "lego",
    "wooseong97/TARA-Merge",
    "efbae686f73d2d2c9487d38f8caff24cb43383fd",
    "src/merge_strategy.py",
    "a port; our first centres",
)
def lego_directions(text: str, problem: Problem) -> Theirs:
    starts = _starts(problem, "directions")
    clock = SimpleNamespace(time=lambda: 0.0)
    fixed = Torch(randperm=lambda *size, **options: starts)
    given = {"tqdm": lambda x: x, "time": clock, "torch": fixed}
    code = functions(text, ["LoRA_LEGO", "_base_key"], **given)
    vectors = {
        str(i): {"w.lora_A.weight": a, "w.lora_B.weight": b}
        for i, (b, a) in enumerate(problem.factors)
    }
    (merged,) = code.LoRA_LEGO(vectors, kmeans_iters=10).values()
    options = {"factors": "read", "distance": "directions", "restarts": 1, "iterations": 10}
    return Theirs(merged, options)


# Rules on inner products.


@case(
    "slerp",
    *MERGEKIT,
    "mergekit/merge_methods/slerp.py",
    "their float32",
    fits=lambda x: len(x.deltas) == 2,
)
def slerp(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["slerp", "lerp", "normalize", "maybe_torch"], np=numpy)
    return Theirs(code.slerp(0.5, *problem.deltas))


@case("nuslerp", *MERGEKIT, "mergekit/merge_methods/nuslerp.py", fits=lambda x: len(x.deltas) == 2)
def nuslerp(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["nuslerp"])
    return Theirs(code.nuslerp(0.5, *problem.deltas), {"each": "row"})


@case("karcher", *MERGEKIT, "mergekit/merge_methods/karcher.py", "converged")
def karcher(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["karcher_merge_tensors"])
    shares = [1 / len(problem.deltas)] * len(problem.deltas)
    merged = code.karcher_merge_tensors(problem.deltas, shares, max_iter=200, tol=1e-12)
    return Theirs(merged, {"tolerance": 1e-13})


def _agree(problem: Problem) -> bool:
    """Whether the mean cosine of two deltas is positive."""
    units = torch.stack([delta.flatten() / delta.norm() for delta in problem.deltas])
    return float((units @ units.T).sum()) > len(units)


@case(
    "model_stock",
    *MERGEKIT,
    "mergekit/merge_methods/model_stock.py",
    "positive mean cosine; below, theirs turns the mean round and ours is zero",
    fits=_agree,
)
def model_stock(text: str, problem: Problem) -> Theirs:
    code = functions(text, ["execute"])
    base = torch.zeros_like(problem.deltas[0])
    task = SimpleNamespace(base_model="base", filter_wise=False)
    task.get_rectified_weights = lambda tensors: (base, problem.deltas)
    tensors = {"base": base, **{str(i): delta for i, delta in enumerate(problem.deltas)}}
    return Theirs(code.execute(task, tensors))

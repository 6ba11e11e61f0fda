"""``result_schema``: the JSON of results, for programs that read it.

The classes are what ``to_dict`` gives and ``--json`` prints, field by field; a test holds them
against results, both ways. Figures are explained in docs/diagnose.md.
"""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from gam_merge._common.errors import GamMergeError

ResultKind = Literal["report", "comparison", "inspection", "plan"]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Choice(_Closed):
    """The method that a method chose, and why."""

    by: str
    method: str
    params: dict[str, Any]
    reason: str
    figures: dict[str, float]
    otherwise: str


class _ModuleReport(_Closed):
    """One module of a merge; lists run over the adapters."""

    name: str
    shape: tuple[int, int] = Field(description="(out, in)")
    ranks: list[int] = Field(description="Numerical ranks, 0 where an adapter lacks the module.")
    norms: list[float] = Field(description="|delta_i|")
    inners: list[float] = Field(description="<merged, delta_i>")
    responses: list[float] = Field(description="|U_i^T merged V_i|^2")
    mean_norm: float = Field(description="The weighted mean of |delta_i|.")
    merged_rank: int
    merged_norm: float
    energy_kept: float = Field(description="Share of the squared norm that the cut kept.")
    warnings: list[str]
    fell_back: bool = Field(description="Whether float32 was not exact enough.")
    norm_ratio: float = Field(description="|merged| / weighted mean of |delta_i|")
    survival: list[float] = Field(description="<merged, delta_i> / |delta_i|^2")
    cross_talk: list[float] = Field(
        description="Share of the result where adapter i acts that is not along delta_i."
    )


class Report(_Closed):
    """A merge: merge_report.json, and what ``gam-merge A B -o OUT --json`` prints."""

    method: str
    sources: list[str]
    weights: list[float] = Field(description="Means over the modules.")
    anchor: int
    rank: int = Field(description="The largest rank of the output.")
    dtype: str
    params: dict[str, Any]
    extras: dict[str, int] = Field(description="Merged tensors that are not factors, by kind.")
    notes: list[str]
    choice: _Choice | None
    norms: list[float]
    merged_norm: float
    norm_ratio: float
    survival: list[float]
    cross_talk: list[float]
    shared: int = Field(description="How many modules all adapters change.")
    energy_kept: float
    fallbacks: list[str] = Field(description="Modules for which float32 was not exact enough.")
    warnings: dict[str, list[str]] = Field(description="Each warning, with its modules.")
    modules: list[_ModuleReport] = Field(
        description="One per module, by name; figures to six significant digits."
    )
    url: str = Field(default="", description="The repository, if the merge was pushed.")


class _Estimate(_Closed):
    seconds: float
    nbytes: int = Field(description="Memory, besides what the libraries take themselves.")


class _Bucket(_Closed):
    """Modules of one shape, with the same adapters and ranks."""

    shape: tuple[int, int]
    adapters: list[int] = Field(description="Positions of the adapters that have the modules.")
    ranks: list[int]
    modules: list[str]


class Plan(_Closed):
    """What a merge would do: ``gam-merge A B --dry-run --json`` and ``gam-merge recipe --json``."""

    method: str
    params: dict[str, Any]
    sources: list[str]
    weights: list[float] = Field(description="Means over the modules.")
    anchor: int
    missing: Literal["zero", "skip"]
    shared: int = Field(description="How many modules all adapters have.")
    base_model: str | None
    device: str
    rank: int = Field(description="An upper limit, if it follows from an energy.")
    energy: float | None
    per_module_rank: bool
    dtype: str
    format: str
    nbytes: int = Field(description="The size of the output.")
    pending: str | None = Field(description="What is decided once tensors are read.")
    notes: list[str]
    buckets: list[_Bucket]
    estimate: _Estimate | None = Field(default=None, description="With --dry-run.")


class _ModuleInspection(_Closed):
    name: str
    shape: tuple[int, int] = Field(description="(out, in)")
    rank: int = Field(description="Of its factors.")
    scale: float
    dtype: str
    parameters: int
    spectrum: list[float] = Field(description="Nonzero singular values, descending.")
    zero: str | None = Field(description="The factor that is all zero, or product.")
    broken: str | None = Field(description="The factor that is not finite, or product.")
    norm: float
    effective_rank: float


class _Part(_Closed):
    """Several modules together."""

    modules: int
    parameters: int
    norm: float
    effective_rank: float
    energy_share: dict[str, float] = Field(description="Share that each lower rank keeps.")


class Inspection(_Closed):
    """One adapter: ``gam-merge inspect A --json``."""

    source: str
    base_model: str | None
    dtype: str | None
    ranks: list[int]
    scales: list[float]
    settings: dict[str, Any] = Field(description="What makes it more than a plain LoRA.")
    extras: dict[str, int]
    problems: list[str] = Field(description="Why a merge would refuse it.")
    notes: list[str] = Field(description="How it was read.")
    zero: list[str]
    broken: list[str]
    total: _Part
    layers: dict[str, _Part]
    types: dict[str, _Part]
    modules: list[_ModuleInspection]


_Matrix = list[list[float | None]]  # (N, N) over the adapters


class _Figures(_Closed):
    """Figures over all pairs of different adapters; null where there is nothing to divide by."""

    overlap_u: float | None
    chance_u: float | None
    times_chance_u: float | None
    overlap_v: float | None
    chance_v: float | None
    times_chance_v: float | None
    cosine: float | None
    common_energy: float | None
    chance_common: float | None
    sign_agreement: float | None
    mean_norm: float | None
    gam_norm: float | None
    gam_to_mean: float | None


class _ModuleComparison(_Figures):
    name: str
    shape: tuple[int, int] = Field(description="(out, in)")
    ranks: list[int]
    angles_u: list[float] | None = Field(description="Least, quartiles and largest, in degrees.")
    angles_v: list[float] | None
    notes: list[str]
    norms: list[float | None]


class _Recommendation(_Closed):
    method: str
    params: dict[str, Any]
    reason: str
    evidence: str


class Comparison(_Figures):
    """Several adapters next to each other: ``gam-merge compare A B --json``."""

    sources: list[str]
    weights: list[float]
    anchor: int
    base_model: str | None
    shared: int
    merge_notes: list[str]
    verdict: str
    recommendation: _Recommendation
    norms: list[float | None]
    gram: _Matrix
    cosines: _Matrix
    overlaps_u: _Matrix
    chances_u: _Matrix
    overlaps_v: _Matrix
    chances_v: _Matrix
    commons: _Matrix
    sign_agreements: _Matrix
    notes: dict[str, list[str]]
    layers: dict[str, _Figures]
    types: dict[str, _Figures]
    modules: list[_ModuleComparison]


_MODELS: dict[ResultKind, type[_Closed]] = {
    "report": Report,
    "comparison": Comparison,
    "inspection": Inspection,
    "plan": Plan,
}


def result_schema(kind: ResultKind) -> dict[str, Any]:
    """Return the JSON Schema of a result, for programs that read it.

    Args:
        kind: "report", "comparison", "inspection" or "plan".

    Returns:
        dict: the schema of what ``to_dict`` of the result gives, and ``--json`` prints.

    Raises:
        GamMergeError: The kind is unknown.

    Example:
        >>> schema = gm.result_schema("plan")
        >>> sorted(schema["properties"])[:3]
        ['anchor', 'base_model', 'buckets']
    """
    if kind not in _MODELS:
        names = ", ".join(get_args(ResultKind))
        raise GamMergeError(f"kind must be one of {names}, got {kind!r}")
    schema = _MODELS[kind].model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}

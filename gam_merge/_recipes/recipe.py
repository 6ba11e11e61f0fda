"""A merge written down: the keys of a recipe, defined once for reading, writing and editors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.options import Missing
from gam_merge._lineup.settings import check_setting
from gam_merge._methods import methods
from gam_merge._methods._schema import Param

_NUMBER = {"type": "number"}
_OVER_DEPTH = {"type": "array", "items": _NUMBER, "minItems": 1}


def _setting_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a setting whose values fit ``value``."""
    entry = {
        "type": "object",
        "properties": {"filter": {"type": "string"}, "value": {"anyOf": [value, _OVER_DEPTH]}},
        "required": ["filter", "value"],
        "additionalProperties": False,
    }
    return {"anyOf": [value, _OVER_DEPTH, {"type": "array", "items": entry, "minItems": 1}]}


def _check_weight(value: Any) -> Any:
    with _as_value_error():
        check_setting("weight", value, number=True)
    return value


def _check_params(value: dict[str, Any]) -> dict[str, Any]:
    with _as_value_error():
        for name, setting in value.items():
            check_setting(name, setting)
    return value


@contextmanager
def _as_value_error() -> Iterator[None]:
    """Raise a GamMergeError as the ValueError that pydantic collects."""
    try:
        yield
    except GamMergeError as error:
        raise ValueError(str(error)) from None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]  # of the output


class RecipeSource(_Strict):
    """One adapter of a merge."""

    path: str = Field(
        min_length=1, description="Directory, file, Hub id, or the name of another merge here."
    )
    weight: Annotated[
        Any, AfterValidator(_check_weight), WithJsonSchema(_setting_schema(_NUMBER))
    ] = Field(
        default=1.0,
        description="A number, a list over the depth of the model, or a list of filters, of which "
        "the first that fits a module holds: layers such as 0-9 or 10-, part of a name, * for all.",
    )
    base_model: str | None = Field(
        default=None, description="The base model, for a file without a config."
    )
    alpha: float | None = Field(
        default=None, description="The alpha of all modules, for a file without a config."
    )
    sha256: _Sha256 | None = Field(
        default=None, description="SHA-256 of the weights; a different one is an error."
    )
    config_sha256: _Sha256 | None = Field(
        default=None, description="SHA-256 of the config; a different one is an error."
    )


class RecipeOutput(_Strict):
    """The adapter that is written."""

    rank: int | None = Field(
        default=None, ge=1, description="Rank of every module (default: the method's own)."
    )
    energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Share of each module's squared norm to keep, instead of a rank.",
    )
    max_rank: int | None = Field(default=None, ge=1, description="Upper limit for the rank.")
    per_module_rank: bool = Field(
        default=False, description="Give each module the rank that it needs."
    )
    flatten_dora: bool = Field(default=False, description="Write DoRA as the nearest plain LoRA.")
    format: str | None = Field(
        default=None, description="Format of the adapter (default: that of the sources)."
    )
    dtype: str | None = Field(
        default=None, description="Dtype (default: the narrowest that holds all sources)."
    )
    sha256: dict[_FileName, _Sha256] | None = Field(
        default=None,
        description="SHA-256 of files that were written; gam-merge verify checks them, a merge "
        "does not.",
    )


class Recipe(_Strict):
    """A merge, written down."""

    name: str | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="Name by which other merges here use it."
    )
    method: str = Field(default="auto", description="Merge method; gam-merge methods lists them.")
    params: Annotated[dict[str, Any], AfterValidator(_check_params)] = Field(
        default_factory=dict[str, Any], description="Parameters of the method."
    )
    sources: list[RecipeSource] = Field(min_length=1, description="The adapters to merge.")
    anchor: int | str = Field(
        default=0, description="Position of a source, from 0, or its path as written here."
    )
    missing: Missing | None = Field(
        default=None,
        description="Count a module that an adapter lacks as zero, or skip the adapter there "
        "(default: zero, but adapters that share no module are an error).",
    )
    allow_base_mismatch: bool = Field(
        default=False, description="Merge adapters whose base models differ in name."
    )
    base_model: str | None = Field(
        default=None, description="Directory, file or Hub id of the base model, for DoRA and GGUF."
    )
    output: RecipeOutput = Field(
        default_factory=RecipeOutput, description="The adapter that is written."
    )


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for editors.

    Returns:
        dict: the schema of one document, with the parameters of each method, but not of
        compositions.

    Example:
        >>> schema = gm.recipe_schema()
        >>> sorted(schema["properties"])[:3]
        ['allow_base_mismatch', 'anchor', 'base_model']
    """
    schema = Recipe.model_json_schema()
    by_name = {method.name: method for method in methods()}
    schema["properties"]["method"]["examples"] = list(by_name)
    cases: list[dict[str, Any]] = []
    for name, method in by_name.items():
        condition: dict[str, Any] = {"properties": {"method": {"const": name}}}
        if name != "auto":  # the default: it also holds where no method is named
            condition["required"] = ["method"]
        params = _params_schema(method.params)
        cases.append({"if": condition, "then": {"properties": {"params": params}}})
    schema["allOf"] = cases
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _params_schema(params: Iterable[Param]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for param in params:
        value: dict[str, Any] = {"type": _JSON_TYPES[param.type]}
        if param.choices:
            value["enum"] = list(param.choices)
        if param.range is not None:
            value["minimum"] = param.range.low
            if param.range.high < inf:
                value["maximum"] = param.range.high
        if param.optional:
            value["type"] = [value["type"], "null"]
        about = {"description": param.doc, "default": param.default}
        properties[param.name] = {**about, **_setting_schema(value)}
    return {"properties": properties, "additionalProperties": False}


_JSON_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "choice": "string"}

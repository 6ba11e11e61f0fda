"""A merge as data: one definition of a recipe for reading, writing and editors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.settings import check_setting
from gam_merge._methods import Method, methods
from gam_merge._methods._schema import Param

OutputFile = Literal["adapter_model.safetensors", "adapter_config.json"]
_NUMBER = {"type": "number"}
_OVER_DEPTH = {"type": "array", "items": _NUMBER, "minItems": 1}


def _setting_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON Schema of a setting whose values match the schema ``value``."""
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
    """Turn a GamMergeError of the block into a ValueError."""
    try:
        yield
    except GamMergeError as error:
        raise ValueError(str(error)) from None  # pydantic collects these


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RecipeSource(_Strict):
    """One adapter of a merge."""

    path: str = Field(
        min_length=1,
        description="A directory, a file, a Hub id, or the name of another merge in this file.",
    )
    weight: Annotated[
        Any, AfterValidator(_check_weight), WithJsonSchema(_setting_schema(_NUMBER))
    ] = Field(
        default=1.0,
        description="A number, a list over the depth of the model, or a list of filters.",
    )
    base_model: str | None = Field(
        default=None, description="The base model of a bare file without a config."
    )
    alpha: float | None = Field(
        default=None, description="The lora_alpha of a bare file without a config."
    )
    sha256: _Sha256 | None = Field(
        default=None,
        description="The SHA-256 of the file of weights; a file with another one is refused.",
    )


class RecipeOutput(_Strict):
    """The adapter that is written."""

    rank: int | None = Field(
        default=None,
        ge=1,
        description="The rank of the adapter (default: the largest rank of the sources).",
    )
    energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The share of each module's squared norm to keep, instead of a rank.",
    )
    max_rank: int | None = Field(default=None, ge=1, description="Upper limit for the rank.")
    per_module_rank: bool = Field(
        default=False, description="Write each module at the rank that it needs."
    )
    flatten_dora: bool = Field(default=False, description="Write DoRA as the nearest plain LoRA.")
    dtype: str | None = Field(
        default=None,
        description="The dtype of the weights (default: the narrowest that holds all sources).",
    )
    sha256: dict[OutputFile, _Sha256] | None = Field(
        default=None,
        description="The SHA-256 of the files that this merge wrote; checked by gam-merge verify.",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of ``merge`` that these fields decide."""
        return {name: value for name, value in self if name != "sha256"}


class Recipe(_Strict):
    """One merge."""

    name: str | None = Field(
        default=None,
        pattern=r"^[\w.-]+$",
        description="The name by which other merges in this file refer to this one.",
    )
    method: str = Field(default="gam", description="A name out of gam-merge methods.")
    params: Annotated[dict[str, Any], AfterValidator(_check_params)] = Field(
        default_factory=dict[str, Any], description="The parameters of the method."
    )
    sources: list[RecipeSource] = Field(min_length=1, description="The adapters to merge.")
    anchor: int | str = Field(
        default=0, description="The position of a source, from 0, or its path as written here."
    )
    missing: Literal["zero", "skip"] = Field(
        default="zero",
        description="How to treat an adapter that lacks a module: as zero, or leave it out there.",
    )
    allow_base_mismatch: bool = Field(
        default=False, description="Merge although the base models have different names."
    )
    base_model: str | None = Field(
        default=None, description="A directory, file or Hub id of the base model, for DoRA."
    )
    output: RecipeOutput = Field(
        default_factory=RecipeOutput, description="The adapter that is written."
    )


def recipe_schema() -> dict[str, Any]:
    """Return the JSON Schema of one document of a recipe file, for editors.

    It has the parameters of each method, but not those of compositions.

    Example:
        >>> schema = gm.recipe_schema()
        >>> schema["required"]
        ['sources']
        >>> schema["properties"]["method"]["default"]
        'gam'

    Returns:
        The schema as plain data for JSON.
    """
    schema = Recipe.model_json_schema()
    schema["properties"]["method"]["examples"] = [method.name for method in methods()]
    schema["allOf"] = [_method_schema(method) for method in methods()]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _method_schema(method: Method) -> dict[str, Any]:
    """Return the condition that a recipe with this method has its parameters."""
    condition: dict[str, Any] = {"properties": {"method": {"const": method.name}}}
    if method.name != Recipe.model_fields["method"].default:
        condition["required"] = ["method"]
    return {
        "if": condition,
        "then": {"properties": {"params": _params_schema(method.params)}},
    }


def _params_schema(params: Iterable[Param]) -> dict[str, Any]:
    properties = {}
    for param in params:
        value: dict[str, Any] = {"type": _JSON_TYPES[param.type]}
        if param.choices:
            value["enum"] = list(param.choices)
        if param.range is not None:
            value["minimum"] = param.range.low
            if param.range.high < inf:
                value["maximum"] = param.range.high
        properties[param.name] = {
            "description": param.doc,
            "default": param.default,
            **_setting_schema(value),
        }
    return {"properties": properties, "additionalProperties": False}


_JSON_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "choice": "string"}

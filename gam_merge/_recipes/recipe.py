"""A merge written down: what may stand in a recipe, in one definition for reading, writing and editors."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from math import inf
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.settings import check_setting
from gam_merge._methods import methods
from gam_merge._methods._schema import Param

OutputFile = Literal["adapter_model.safetensors", "adapter_config.json"]
_NUMBER = {"type": "number"}
_OVER_DEPTH = {"type": "array", "items": _NUMBER, "minItems": 1}


def _setting_schema(value: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a setting whose values fit ``value``."""
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
    try:
        yield
    except GamMergeError as error:
        raise ValueError(str(error)) from None  # what pydantic collects


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class RecipeSource(_Strict):
    """One adapter of a merge."""

    path: str = Field(
        min_length=1,
        description="Directory, file, Hub id, or the name of another merge in this file.",
    )
    weight: Annotated[
        Any, AfterValidator(_check_weight), WithJsonSchema(_setting_schema(_NUMBER))
    ] = Field(
        default=1.0,
        description="A number, a list over the depth of the model, or a list of filters.",
    )
    base_model: str | None = Field(default=None, description="Of a bare file without a config.")
    alpha: float | None = Field(
        default=None, description="lora_alpha of a bare file without a config."
    )
    sha256: _Sha256 | None = Field(
        default=None, description="Of the file of weights; another one is an error."
    )


class RecipeOutput(_Strict):
    """What is written."""

    rank: int | None = Field(
        default=None, ge=1, description="By default the largest of the sources."
    )
    energy: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The share of each module's squared norm to keep, instead of a rank.",
    )
    max_rank: int | None = Field(default=None, ge=1, description="At most so many.")
    per_module_rank: bool = Field(
        default=False, description="Each module in the rank that it needs."
    )
    flatten_dora: bool = Field(default=False, description="Write DoRA as the nearest plain LoRA.")
    dtype: str | None = Field(
        default=None, description="By default the narrowest that holds all sources."
    )
    sha256: dict[OutputFile, _Sha256] | None = Field(
        default=None,
        description="Of files that were written once; gam-merge verify compares, a merge does not.",
    )

    @property
    def settings(self) -> dict[str, Any]:
        """What it decides of a merge, as arguments of ``merge``."""
        return {name: value for name, value in self if name != "sha256"}


class Recipe(_Strict):
    """A merge, written down."""

    name: str | None = Field(
        default=None, pattern=r"^[\w.-]+$", description="For other merges in this file."
    )
    method: str = Field(default="gam", description="See gam-merge methods.")
    params: Annotated[dict[str, Any], AfterValidator(_check_params)] = Field(
        default_factory=dict[str, Any], description="Of the method."
    )
    sources: list[RecipeSource] = Field(min_length=1, description="The adapters to merge.")
    anchor: int | str = Field(
        default=0, description="Position of a source, from 0, or its path as written here."
    )
    missing: Literal["zero", "skip"] = Field(
        default="zero",
        description="What a module counts as that an adapter lacks: zero, or not at all.",
    )
    allow_base_mismatch: bool = Field(
        default=False, description="Merge though the base models differ in name."
    )
    base_model: str | None = Field(
        default=None, description="Directory, file or Hub id of the base model, for DoRA."
    )
    output: RecipeOutput = Field(default_factory=RecipeOutput, description="What is written.")


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of one document, for editors: with the parameters of each method, but not of compositions."""
    schema = Recipe.model_json_schema()
    by_name = {method.name: method for method in methods()}
    schema["properties"]["method"]["examples"] = list(by_name)
    schema["allOf"] = [
        {
            "if": {
                "properties": {"method": {"const": name}},
                **({} if name == "gam" else {"required": ["method"]}),
            },
            "then": {"properties": {"params": _params_schema(method.params)}},
        }
        for name, method in by_name.items()
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _params_schema(params: Iterable[Param]) -> dict[str, Any]:
    properties = {}
    for param in params:
        value: dict[str, Any] = {"type": _JSON_TYPES[param.type]}
        if param.choices:
            value["enum"] = list(param.choices)
        if param.range is not None:
            value |= {"minimum": param.range.low}
            value |= {"maximum": param.range.high} if param.range.high < inf else {}
        properties[param.name] = {
            "description": param.doc,
            "default": param.default,
            **_setting_schema(value),
        }
    return {"properties": properties, "additionalProperties": False}


_JSON_TYPES = {"float": "number", "int": "integer", "bool": "boolean", "choice": "string"}

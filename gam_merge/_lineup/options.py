"""The options of a merge, defined once: for merge, plan, resize, recipes and integrations.

A function takes them as ``**options: Unpack[MergeOptions]``, which type checkers know by name, and
is decorated with ``explicit``, so that ``help`` shows each with its default and its text.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, fields
from functools import wraps
from os import PathLike
from typing import Any, Literal, TypedDict, TypeVar, cast, get_args, get_type_hints

import torch

from gam_merge._common.types import Progress, Setting
from gam_merge._read.weight import BaseWeight

BaseModel = str | PathLike[str] | Mapping[str, BaseWeight]  # a name or a place, or the weights
Missing = Literal["zero", "skip"]
Target = Literal["vllm", "sglang", "llama.cpp", "ollama", "mlx", "diffusers", "comfyui"]

F = TypeVar("F", bound=Callable[..., Any])


class OutputOptions(TypedDict, total=False):
    """The options that also make sense for a single adapter."""

    rank: int | None
    energy: float | None
    max_rank: int | None
    per_module_rank: bool
    flatten_dora: bool
    target: Target | None
    format: str | None
    dtype: str | torch.dtype | None
    device: str | torch.device
    base_model: BaseModel | None
    alpha: float | Sequence[float] | None


class MergeOptions(OutputOptions, total=False):
    """The options of merge and plan."""

    method: str
    weights: Sequence[Setting] | None
    params: Mapping[str, Setting] | None
    anchor: int | str
    missing: Missing | None
    allow_base_mismatch: bool


class RunOptions(MergeOptions, total=False):
    """All keyword arguments of merge."""

    out: str | PathLike[str] | None
    force: bool
    executor: Executor | None
    progress: Progress | None


@dataclass(frozen=True)
class Request:
    """A merge as it was asked for: every option, with its default.

    Attributes:
        method: the name of a rule, such as ``ties``, or a composition, such as ``ties@knots`` or
            ``pico+tsvm``; see ``methods``. ``auto`` looks at some of the deltas, and takes ``gam``
            where they share their directions, else ``consensus``.
        weights: one per source. Methods that average normalise them, and they must not be
            negative there. Each is a number, a list of numbers that is spread over the depth of
            the model, or a list of ``{"filter": "*.mlp.*", "value": ...}``, of which the first that
            fits a module holds: ``0-9`` and ``10-`` are layers, ``*`` is the rest. Equal by
            default.
        params: the parameters of the method, by name. A value may also be a list over depth or a
            list of filters, as a weight may.
        anchor: the source that ``gam`` aligns the others to and that ``np_lora`` keeps whole, by
            position or as given in the sources.
        missing: ``"zero"`` counts a module that an adapter lacks as a zero delta; ``"skip"``
            leaves that adapter out there. By default zero, but adapters that share no module are
            then an error. Tensors besides the factors are averaged over the adapters that have
            them.
        rank: the rank of every module; by default the method's own, the largest rank of the
            sources or, for methods that need it, their sum.
        energy: the share of each module's squared norm to keep, in (0, 1], instead of a rank: one
            rank for all modules, the largest that any of them needs.
        max_rank: upper limit for the rank.
        per_module_rank: give each module the rank that it needs.
        flatten_dora: write DoRA as the nearest plain LoRA.
        target: refuse what this server or reader does not take, and say what to change.
        format: the format of the output, ``"peft"``, ``"kohya"``, ``"diffusers"``, ``"mlx"`` or
            ``"gguf"``; by default that of the sources, or the one whose files end as ``out`` does.
            Names of modules are translated where it differs.
        dtype: the dtype of the output; by default the narrowest that holds all sources.
        device: where it is computed; ``"auto"`` takes a GPU if there is one.
        base_model: for bare files, the name of their base model. For DoRA adapters a directory or
            a file of safetensors, a Hub id, of which the files that hold their modules are
            fetched, or the weights by module. To translate names from or into GGUF a directory or
            a Hub id, of which the config alone is read; by default the one that adapters name.
        alpha: for bare files without a config; one for all or one per source.
        allow_base_mismatch: merge adapters whose base models differ in name.
    """

    method: str = "auto"
    weights: Sequence[Setting] | None = None
    params: Mapping[str, Setting] | None = None
    anchor: int | str = 0
    missing: Missing | None = None
    rank: int | None = None
    energy: float | None = None
    max_rank: int | None = None
    per_module_rank: bool = False
    flatten_dora: bool = False
    target: Target | None = None
    format: str | None = None
    dtype: str | torch.dtype | None = None
    device: str | torch.device = "auto"
    base_model: BaseModel | None = None
    alpha: float | Sequence[float] | None = None
    allow_base_mismatch: bool = False


@dataclass(frozen=True)
class _Run:
    """Where and how a merge is run: keyword arguments of merge besides its options.

    Attributes:
        out: the directory to write, or a file ``NAME.safetensors`` or ``NAME.gguf``; without it
            the result stays in memory until ``save``.
        force: replace an ``out`` that is empty or an earlier merge.
        executor: where chunks of modules are merged, for instance that of a Dask client; threads
            of this process by default. The bytes are the same with any.
        progress: called with (modules done, modules in all).
    """

    out: str | PathLike[str] | None = None
    force: bool = False
    executor: Executor | None = None
    progress: Progress | None = None


def explicit(**defaults: Any) -> Callable[[F], F]:
    """Show the options of a function one by one, in its signature and in the Args of its docstring.

    defaults: those that differ from the defaults of ``merge``. A misspelt option is a TypeError
    that names the function.
    """

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        *parameters, options = signature.parameters.values()
        (kind,) = get_args(options.annotation)
        hints = get_type_hints(kind)
        shown = [field for field in (*fields(Request), *fields(_Run)) if field.name in hints]
        for field in shown:
            parameter = inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, field.default),
                annotation=hints[field.name],
            )
            parameters.append(parameter)
        expanded = signature.replace(parameters=parameters)

        @wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                expanded.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{function.__name__}() {error}") from None
            return function(*args, **kwargs)

        checked.__signature__ = expanded  # type: ignore[attr-defined]
        names = {field.name for field in shown}
        checked.__doc__ = _with_args(inspect.getdoc(function) or "", names)
        return cast(F, checked)

    return decorate


def _with_args(docstring: str, names: set[str]) -> str:
    """Return a docstring whose Args end with the texts of some options."""
    texts = {**_attributes(Request), **_attributes(_Run)}
    args = "".join(text for name, text in texts.items() if name in names)
    before, returns, after = docstring.partition("\n\nReturns:")
    return f"{before}\n{args.rstrip()}{returns}{after}"


def _attributes(record: type) -> dict[str, str]:
    """Return the lines about each attribute of a class, by name."""
    section = (inspect.getdoc(record) or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    name = ""
    for line in section.splitlines(keepends=True):
        if not line.startswith("        "):
            name = line.partition(":")[0].strip()
        texts[name] = texts.get(name, "") + line
    return {name: text.rstrip("\n") + "\n" for name, text in texts.items()}

"""Every option of every verb, declared once, so that verbs spell and explain it alike."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

from gam_cli._completion import complete_method, complete_param

# panels of the help
_MERGE, _RECIPE, _INPUT, _OUTPUT = "Merge", "Recipe", "Input", "Output"
_CHECKS, _HUB, _RUNNING = "Checks", "Hub", "Running"


class Param(NamedTuple):
    """One ``NAME=VALUE``."""

    name: str
    value: Any


class GroupBy(StrEnum):
    """The part of the model that a row of a table sums over."""

    layer = "layer"
    type = "type"
    module = "module"


def _parse_param(text: str) -> Param:
    """``lam=0.5`` -> ("lam", 0.5): a value is JSON where it can be, else the text itself."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"must be NAME=VALUE, got {text!r}")
    try:
        return Param(name, json.loads(value))
    except (ValueError, RecursionError):
        return Param(name, value)


def _parse_weight(text: str) -> Any:
    """``0.6`` -> 0.6, ``0-9:1,*:0.5`` -> a list of filters, ``[0.2, 0.8]`` -> a list over depth."""
    try:
        return json.loads(text) if text.startswith("[") else float(text)
    except (ValueError, RecursionError):
        return [_parse_filter(part, text) for part in text.split(",")]


def _parse_filter(part: str, text: str) -> dict[str, Any]:
    """``0-9:1`` -> {"filter": "0-9", "value": 1.0}."""
    pattern, _, value = part.strip().rpartition(":")
    error = typer.BadParameter(
        f"must be a number, or numbers by layer or name such as 0-9:1,10-:0.5, got {text!r}"
    )
    if not pattern:
        raise error
    try:
        return {"filter": pattern, "value": float(value)}
    except ValueError:
        raise error from None


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _flag(panel: str, *names: str, help: str) -> Any:
    """An option without a value: the help would show ``<bool>`` next to it."""
    return _option(panel, *names, help=help, metavar="")


# Arguments

_ADAPTERS = (
    r"Adapters: directories, .safetensors or .gguf files, or Hub ids "
    r"org/name\[@revision]\[:subfolder]."
)
_ADAPTER = "An adapter: a directory, a .safetensors or .gguf file, or a Hub id."

Sources = Annotated[list[str], typer.Argument(metavar="SOURCES", help=_ADAPTERS)]
SomeSources = Annotated[list[str] | None, typer.Argument(metavar="SOURCES", help=_ADAPTERS)]
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=_ADAPTER)]
Adapter = Annotated[str, typer.Argument(metavar="ADAPTER", help=_ADAPTER)]
Model = Annotated[
    str,
    typer.Argument(metavar="BASE", help="A model: a directory of safetensors files and a config."),
]
TunedModel = Annotated[
    str, typer.Argument(metavar="TUNED", help="The same model after fine-tuning.")
]
Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="Output directory of a trainer, with checkpoint-<step>."),
]
RecipeFile = Annotated[Path | None, typer.Argument(metavar="FILE", help="Recipe to check.")]
Recipes = Annotated[list[Path], typer.Argument(metavar="FILES", help="Recipes to run.")]
Merge = Annotated[Path, typer.Argument(metavar="OUT", help="Directory or file written by a merge.")]
Repository = Annotated[
    str,
    typer.Argument(
        metavar="USER/NAME", help="Repository on the Hub, created if it does not exist."
    ),
]
MethodName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        autocompletion=complete_method,
        help="A method, or a composition such as ties@knots or pico+tsvm+svc.",
    ),
]
Kind = Annotated[
    Literal["report", "comparison", "inspection", "plan"],
    typer.Argument(
        metavar="KIND", help="report (of a merge), comparison, inspection or plan (of --dry-run)."
    ),
]
Verb = Annotated[
    str | None, typer.Argument(metavar="VERB", help="A verb; without it, all of them.")
]

# Merge

Method = Annotated[
    str,
    _option(
        _MERGE,
        "--method",
        "-m",
        metavar="NAME",
        autocompletion=complete_method,
        help="Merge method; see gam-merge methods.",
    ),
]
Params = Annotated[
    list[Param] | None,
    _option(
        _MERGE,
        "--param",
        "-p",
        metavar="NAME=VALUE",
        parser=_parse_param,
        autocompletion=complete_param,
        help="Parameter of the method; repeatable.",
    ),
]
Weights = Annotated[
    list[Any] | None,
    _option(
        _MERGE,
        "--weights",
        "-w",
        metavar="WEIGHT",
        parser=_parse_weight,
        help="One weight per source, in order (default: equal); by layer or name, the first that "
        "fits: 0-9:1,10-:0.5 or mlp:0.3,*:1.",
    ),
]
Anchor = Annotated[
    str,
    _option(
        _MERGE,
        "--anchor",
        metavar="SOURCE",
        help="Source that gam aligns to or np_lora keeps: its position from 0, or as typed.",
    ),
]
Missing = Annotated[
    Literal["zero", "skip"] | None,
    _option(
        _MERGE,
        "--missing",
        metavar="NAME",
        help="How to treat a module that an adapter lacks: zero (default) or skip; one of them "
        "must be given where adapters share no module.",
    ),
]
Last = Annotated[
    int, _option(_MERGE, "--last", metavar="INT", help="Number of checkpoints, from the end.")
]
Ema = Annotated[
    float | None,
    _option(
        _MERGE,
        "--ema",
        metavar="DECAY",
        help="Decay of an exponential moving average (default: equal weights).",
    ),
]

# Recipe

Recipe = Annotated[Path | None, _option(_RECIPE, "--recipe", metavar="FILE", help="Recipe to run.")]
FirstRecipe = Annotated[
    Path, _option(_RECIPE, "--recipe", metavar="FILE", help="Recipe to start from.")
]
Set = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe: weights.a=0.3, params.density=0.2, ...",
    ),
]
Schema = Annotated[bool, _flag(_RECIPE, "--schema", help="Print the JSON Schema of recipes.")]
Evaluate = Annotated[
    str,
    _option(
        _RECIPE,
        "--evaluate",
        metavar="COMMAND",
        help='Command that prints a score last: "python score.py {adapter}".',
    ),
]
Trials = Annotated[
    int, _option(_RECIPE, "--trials", metavar="INT", min=1, help="Total number of trial merges.")
]
Vary = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--vary",
        metavar="KEY",
        help="Key to vary: weights (default), anchor, params.NAME or KEY=LOW:HIGH.",
    ),
]
Minimize = Annotated[bool, _flag(_RECIPE, "--minimize", help="A lower score is better.")]

# Input

Base = Annotated[
    str | None,
    _option(
        _INPUT,
        "--base",
        metavar="MODEL",
        help="Base model: its name for bare files, its directory or Hub id for DoRA and GGUF.",
    ),
]
Alpha = Annotated[
    list[float] | None,
    _option(
        _INPUT,
        "--alpha",
        metavar="FLOAT",
        help="lora_alpha of bare files: one for all, or one per source.",
    ),
]
OneAlpha = Annotated[
    float | None, _option(_INPUT, "--alpha", metavar="FLOAT", help="lora_alpha of a bare file.")
]
AllowBaseMismatch = Annotated[
    bool,
    _flag(
        _INPUT, "--allow-base-mismatch", help="Accept adapters whose base models differ in name."
    ),
]
Modules = Annotated[
    list[str] | None,
    _option(
        _INPUT,
        "--modules",
        metavar="NAME",
        help="Layers to take, such as q_proj; repeatable (default: all linear layers).",
    ),
]

# Output

_OUT = "Directory to write, or a file NAME.safetensors or NAME.gguf."

Out = Annotated[str | None, _option(_OUTPUT, "--out", "-o", metavar="PATH", help=_OUT)]
RequiredOut = Annotated[str, _option(_OUTPUT, "--out", "-o", metavar="PATH", help=_OUT)]
OutDirectory = Annotated[
    str, _option(_OUTPUT, "--out", "-o", metavar="PATH", help="Directory to write.")
]
Rank = Annotated[
    int | None,
    _option(
        _OUTPUT,
        "--rank",
        metavar="INT",
        help="Rank of the merged adapter (default: the method's own).",
    ),
]
NewRank = Annotated[
    int | None, _option(_OUTPUT, "--rank", metavar="INT", help="Rank of the adapter.")
]
Energy = Annotated[
    float | None,
    _option(
        _OUTPUT,
        "--energy",
        metavar="SHARE",
        help="Smallest rank that keeps this share of the energy in every module.",
    ),
]
MaxRank = Annotated[
    int | None, _option(_OUTPUT, "--max-rank", metavar="INT", help="Upper limit for the rank.")
]
PerModuleRank = Annotated[
    bool,
    _flag(
        _OUTPUT,
        "--per-module-rank",
        help="Give each module the rank that it needs (not for llama.cpp).",
    ),
]
FlattenDora = Annotated[
    bool, _flag(_OUTPUT, "--flatten-dora", help="Write DoRA as the nearest plain LoRA.")
]
For = Annotated[
    Literal["vllm", "sglang", "llama.cpp", "ollama", "mlx", "diffusers", "comfyui"] | None,
    _option(
        _OUTPUT,
        "--for",
        metavar="SERVER",
        help="Refuse what this server does not support: vllm, sglang, llama.cpp, ollama, mlx, "
        "diffusers or comfyui.",
    ),
]
Format = Annotated[
    str | None,
    _option(
        _OUTPUT,
        "--format",
        metavar="NAME",
        help="peft, kohya, diffusers, mlx or gguf (default: the format of the sources).",
    ),
]
BaseName = Annotated[
    str | None,
    _option(
        _OUTPUT,
        "--base-model",
        metavar="NAME",
        help="Base model to name in the adapter (default: BASE).",
    ),
]
Dtype = Annotated[
    str | None,
    _option(
        _OUTPUT,
        "--dtype",
        metavar="NAME",
        help="bf16, fp16 or fp32 (default: the input's).",
    ),
]
Force = Annotated[bool, _flag(_OUTPUT, "--force", help="Replace an earlier output.")]
Json = Annotated[bool, _flag(_OUTPUT, "--json", help="Print only JSON on stdout.")]
By = Annotated[GroupBy, _option(_OUTPUT, "--by", help="Group the rows by layer, type or module.")]
Plot = Annotated[
    Path | None,
    _option(
        _OUTPUT,
        "--plot",
        metavar="PATH",
        help="Write a figure: .png, .svg or .pdf (needs gam-merge\\[plot]).",
    ),
]
Html = Annotated[
    Path | None,
    _option(
        _OUTPUT,
        "--html",
        metavar="PATH",
        help="Write a report as one HTML file (needs gam-merge\\[plot]).",
    ),
]

# Checks

NoSources = Annotated[
    bool, _flag(_CHECKS, "--no-sources", help="Skip the sources, which may be elsewhere.")
]
Rerun = Annotated[
    bool, _flag(_CHECKS, "--rerun", help="Merge again, into a temporary directory, and compare.")
]

# Hub

PushTo = Annotated[
    str | None,
    _option(
        _HUB, "--push-to-hub", metavar="USER/NAME", help="Upload the merge once it is written."
    ),
]
Private = Annotated[bool, _flag(_HUB, "--private", help="Create the repository as private.")]
Revision = Annotated[
    str | None, _option(_HUB, "--revision", metavar="BRANCH", help="Branch to upload to.")
]
CreatePr = Annotated[
    bool, _flag(_HUB, "--create-pr", help="Open a pull request instead of a commit.")
]
CommitMessage = Annotated[
    str, _option(_HUB, "--commit-message", metavar="TEXT", help="Commit message.")
]

# Running

Device = Annotated[
    str,
    _option(
        _RUNNING, "--device", metavar="NAME", help="Where to compute: auto, cpu, cuda, cuda:1, ..."
    ),
]
Jobs = Annotated[
    int, _option(_RUNNING, "--jobs", "-j", metavar="INT", min=1, help="Recipes to run at a time.")
]
SignSeed = Annotated[
    int,
    _option(
        _RUNNING,
        "--seed",
        metavar="INT",
        help="Seed for sampling the rows whose signs are compared.",
    ),
]
SketchSeed = Annotated[
    int,
    _option(
        _RUNNING, "--seed", metavar="INT", help="Seed for the random sketches of the differences."
    ),
]
SearchSeed = Annotated[
    int, _option(_RUNNING, "--seed", metavar="INT", help="Seed for the first points of the search.")
]
DryRun = Annotated[
    bool,
    _flag(_RUNNING, "--dry-run", help="Print the plan; read no tensor, write nothing."),
]
Explain = Annotated[
    bool, _flag(_RUNNING, "--explain", help="List the ten modules that lost the most.")
]
Host = Annotated[
    str,
    _option(
        _RUNNING,
        "--host",
        metavar="ADDRESS",
        help="Address of the page; 0.0.0.0 is for others to see, too.",
    ),
]
Port = Annotated[
    int | None,
    _option(
        _RUNNING,
        "--port",
        metavar="INT",
        min=1,
        max=65535,
        help="Port of the page (default: the first free one from 7860).",
    ),
]
NoBrowser = Annotated[
    bool, _flag(_RUNNING, "--no-browser", help="Print the address, and open no browser.")
]
Quiet = Annotated[bool, _flag(_RUNNING, "--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool,
    _flag(_RUNNING, "--verbose", "-v", help="Also list every module, or every bucket of a plan."),
]

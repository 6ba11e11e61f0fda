"""Every option of every verb, declared once, so that verbs spell and explain the same thing alike."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

_MERGE, _RECIPE, _OUTPUT, _HUB, _RUNNING = (
    "Merge",
    "Recipe",
    "Output",
    "Hub",
    "Running",
)  # panels of the help


class Param(NamedTuple):
    """One ``NAME=VALUE``."""

    name: str
    value: Any


class Part(StrEnum):
    """What figures are summed over."""

    layer = "layer"
    type = "type"
    module = "module"


def _parse_param(text: str) -> Param:
    """``lam=0.5`` -> ("lam", 0.5): a value is JSON where it can be, else the text itself."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return Param(name, json.loads(value))
    except (ValueError, RecursionError):
        return Param(name, value)


def _option(panel: str, *names: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


_SOURCES = r"Adapters: directories that PEFT saved, .safetensors files, Hub ids org/name\[@revision]\[:subfolder]."
Sources = Annotated[list[str], typer.Argument(metavar="SOURCES", help=_SOURCES)]
SomeSources = Annotated[list[str] | None, typer.Argument(metavar="SOURCES", help=_SOURCES)]

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", help="An adapter: a directory that PEFT saved, or a .safetensors file."
    ),
]

Adapter = Annotated[
    str,
    typer.Argument(metavar="ADAPTER", help="A directory that PEFT saved, or a .safetensors file."),
]
Model = Annotated[
    str,
    typer.Argument(metavar="BASE", help="A model: a directory of safetensors files and a config."),
]

TunedModel = Annotated[
    str, typer.Argument(metavar="TUNED", help="The same model after fine-tuning.")
]

Run = Annotated[
    str,
    typer.Argument(metavar="RUN", help="The output folder of a trainer, with checkpoint-<step>."),
]
Last = Annotated[
    int, _option(_MERGE, "--last", metavar="INT", help="How many of them, from the end.")
]
Ema = Annotated[
    float | None,
    _option(
        _MERGE, "--ema", metavar="DECAY", help="Of a moving average; equal weights without it."
    ),
]

Method = Annotated[str, _option(_MERGE, "--method", "-m", metavar="NAME", help="How to merge.")]
Params = Annotated[
    list[Param] | None,
    _option(
        _MERGE,
        "--param",
        "-p",
        metavar="NAME=VALUE",
        parser=_parse_param,
        help="A parameter of the method.",
    ),
]
Weights = Annotated[
    list[float] | None,
    _option(
        _MERGE,
        "--weights",
        "-w",
        metavar="FLOAT",
        help="One a source, in order; equal if not given.",
    ),
]
Anchor = Annotated[
    str,
    _option(
        _MERGE,
        "--anchor",
        metavar="SOURCE",
        help="What to align to: position from 0, or source as typed.",
    ),
]
Base = Annotated[
    str | None,
    _option(
        _MERGE,
        "--base",
        metavar="MODEL",
        help="Base model: of bare files; for DoRA its directory or Hub id.",
    ),
]
Alpha = Annotated[
    list[float] | None,
    _option(_MERGE, "--alpha", metavar="FLOAT", help="Their lora_alpha: one, or one a source."),
]
OneAlpha = Annotated[
    float | None, _option(_MERGE, "--alpha", metavar="FLOAT", help="Its lora_alpha.")
]
Missing = Annotated[
    str,
    _option(
        _MERGE,
        "--missing",
        metavar="NAME",
        help="What a module that an adapter lacks counts as: zero, or skip.",
    ),
]
AllowBaseMismatch = Annotated[
    bool, _option(_MERGE, "--allow-base-mismatch", help="Merge though base models differ by name.")
]

Recipe = Annotated[
    Path | None, _option(_RECIPE, "--recipe", metavar="FILE", help="Do what a recipe says.")
]
Set = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--set",
        metavar="KEY=VALUE",
        help="Over the recipe: weights.a=0.3, params.density=0.2, ...",
    ),
]

SearchedRecipe = Annotated[
    Path, _option(_RECIPE, "--recipe", metavar="FILE", help="Where the search starts.")
]
Recipes = Annotated[list[Path], typer.Argument(metavar="FILES", help="Recipes.")]
Evaluate = Annotated[
    str,
    _option(
        _RECIPE,
        "--evaluate",
        metavar="COMMAND",
        help='Prints a score last: "python score.py {adapter}".',
    ),
]
Trials = Annotated[
    int, _option(_RECIPE, "--trials", metavar="INT", min=1, help="Merges to score, in all.")
]
Vary = Annotated[
    list[str] | None,
    _option(
        _RECIPE,
        "--vary",
        metavar="KEY",
        help="weights (if not given), anchor, params.NAME, KEY=LOW:HIGH.",
    ),
]
Minimize = Annotated[bool, _option(_RECIPE, "--minimize", help="The lower the score the better.")]
RecipeFile = Annotated[Path | None, typer.Argument(metavar="FILE", help="A recipe.")]
Schema = Annotated[bool, _option(_RECIPE, "--schema", help="Print the JSON Schema of recipes.")]

Out = Annotated[
    str | None, _option(_OUTPUT, "--out", "-o", metavar="PATH", help="Directory to write.")
]
RequiredOut = Annotated[
    str, _option(_OUTPUT, "--out", "-o", metavar="PATH", help="Directory to write.")
]
Rank = Annotated[
    int | None,
    _option(_OUTPUT, "--rank", metavar="INT", help="By default the largest of the sources."),
]
MaxRank = Annotated[
    int | None, _option(_OUTPUT, "--max-rank", metavar="INT", help="At most so many.")
]
FlattenDora = Annotated[
    bool, _option(_OUTPUT, "--flatten-dora", help="Write DoRA as the nearest plain LoRA.")
]
PerModuleRank = Annotated[
    bool,
    _option(
        _OUTPUT,
        "--per-module-rank",
        help="Each module in the rank that it needs: not for llama.cpp.",
    ),
]
For = Annotated[
    str | None,
    _option(
        _OUTPUT, "--for", metavar="SERVER", help="Refuse what it does not serve: vllm, llama.cpp."
    ),
]
NewRank = Annotated[int | None, _option(_OUTPUT, "--rank", metavar="INT", help="Of the adapter.")]
Energy = Annotated[
    float | None,
    _option(
        _OUTPUT,
        "--energy",
        metavar="SHARE",
        help="Least rank that keeps this share of every module's energy.",
    ),
]
Modules = Annotated[
    list[str] | None,
    _option(
        _OUTPUT,
        "--modules",
        metavar="NAME",
        help="Layers to take, as q_proj; repeatable; by default all linear.",
    ),
]
BaseName = Annotated[
    str | None,
    _option(_OUTPUT, "--base-model", metavar="NAME", help="Base model that the adapter names."),
]
Dtype = Annotated[
    str | None,
    _option(
        _OUTPUT, "--dtype", metavar="NAME", help="bf16, fp16, fp32; by default that of the sources."
    ),
]
Force = Annotated[bool, _option(_OUTPUT, "--force", help="Replace an earlier merge.")]
Json = Annotated[bool, _option(_OUTPUT, "--json", help="Print JSON alone on stdout.")]

PushTo = Annotated[
    str | None,
    _option(
        _HUB, "--push-to-hub", metavar="USER/NAME", help="Upload the merge when it is written."
    ),
]
Private = Annotated[
    bool, _option(_HUB, "--private", help="The repository that is made is private.")
]
Revision = Annotated[
    str | None, _option(_HUB, "--revision", metavar="BRANCH", help="Upload to a branch.")
]
CreatePr = Annotated[
    bool, _option(_HUB, "--create-pr", help="Open a pull request in place of a commit.")
]
CommitMessage = Annotated[
    str, _option(_HUB, "--commit-message", metavar="TEXT", help="Of the commit.")
]
NoSources = Annotated[
    bool, _option(_MERGE, "--no-sources", help="Leave the sources alone: they may not be here.")
]
Rerun = Annotated[
    bool, _option(_MERGE, "--rerun", help="Do the merge again, to a temporary place, and compare.")
]
Merge = Annotated[Path, typer.Argument(metavar="OUT", help="A directory that a merge wrote.")]
Repository = Annotated[
    str,
    typer.Argument(metavar="USER/NAME", help="A repository on the Hub, made if it is not there."),
]

Parts = Annotated[Part, _option(_OUTPUT, "--by", help="What the rows of the table are.")]
Plot = Annotated[
    Path | None,
    _option(
        _OUTPUT, "--plot", metavar="PATH", help="Write a figure: .png, .svg or .pdf (extra: plot)."
    ),
]
Html = Annotated[
    Path | None,
    _option(
        _OUTPUT, "--html", metavar="PATH", help="Write a report of one HTML file (extra: plot)."
    ),
]

Device = Annotated[
    str, _option(_RUNNING, "--device", metavar="NAME", help="auto, cpu, cuda, cuda:1, ...")
]
DryRun = Annotated[
    bool, _option(_RUNNING, "--dry-run", help="Print the plan; read no tensor, write nothing.")
]
Seed = Annotated[
    int, _option(_RUNNING, "--seed", metavar="INT", help="Of the rows on which signs are compared.")
]
Explain = Annotated[
    bool, _option(_RUNNING, "--explain", help="Print the ten modules that lost most.")
]
SearchSeed = Annotated[
    int, _option(_RUNNING, "--seed", metavar="INT", help="Of the first points that are tried.")
]
Jobs = Annotated[
    int, _option(_RUNNING, "--jobs", "-j", metavar="INT", min=1, help="Recipes at a time.")
]
Quiet = Annotated[bool, _option(_RUNNING, "--quiet", "-q", help="Print nothing but errors.")]
Verbose = Annotated[
    bool, _option(_RUNNING, "--verbose", "-v", help="Print more: a row for each module.")
]

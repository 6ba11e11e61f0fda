"""The verbs, and the options that come before them.

To add a verb, write it as a function in a file of its own and name it in ``VERBS``. An error that
it raises becomes one line on stderr and exit code 1; with ``GAM_MERGE_DEBUG=1`` a traceback comes
before that line.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gam_cli import INTERRUPTED
from gam_cli._batch import batch
from gam_cli._checkpoints import checkpoints
from gam_cli._compare import compare
from gam_cli._convert import convert
from gam_cli._extract import extract
from gam_cli._fuse import fuse
from gam_cli._help import help
from gam_cli._inspect import inspect
from gam_cli._merge import merge
from gam_cli._methods import methods
from gam_cli._push import push
from gam_cli._recipe import recipe
from gam_cli._resize import resize
from gam_cli._schema import schema
from gam_cli._search import search
from gam_cli._ui import ui
from gam_cli._verify import verify

VERBS = (
    merge,
    inspect,
    compare,
    methods,
    fuse,
    extract,
    resize,
    convert,
    checkpoints,
    recipe,
    search,
    batch,
    verify,
    push,
    ui,
    schema,
    help,
)
_DEFAULT = "merge"


class VerbGroup(TyperGroup):
    """A group of verbs in which ``gam-merge A B`` means ``gam-merge merge A B``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and not self._knows(ctx, args[0]):
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)

    def _knows(self, ctx: Any, word: str) -> bool:
        """Whether the word is a verb, or an option that comes before verbs."""
        flags: list[str] = []
        for param in self.get_params(ctx):
            flags += [*param.opts, *param.secondary_opts]
        return word in self.commands or word.partition("=")[0] in flags

    def format_help(self, ctx: Any, formatter: Any) -> None:
        super().format_help(ctx, formatter)
        command = self.commands[_DEFAULT]
        command.format_help(type(ctx)(command, info_name=f"[{_DEFAULT}]", parent=ctx), formatter)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            pass  # and drop its frames with what they still hold open
        except (typer.Exit, typer.Abort, typer.TyperException, BrokenPipeError):
            raise
        except Exception as error:
            from gam_cli._present import print_error

            print_error(error, known=_is_known(error), traceback=_is_debugged())
            raise typer.Exit(1) from None
        raise typer.Exit(INTERRUPTED)


def _is_known(error: Exception) -> bool:
    """Whether it is a GamMergeError, without importing the library to find out."""
    library = sys.modules.get("gam_merge")
    return library is not None and isinstance(error, library.GamMergeError)


def _is_debugged() -> bool:
    return os.environ.get("GAM_MERGE_DEBUG", "") not in ("", "0")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # slow to import

        typer.echo(f"gam-merge {version('gam-merge')}")
        raise typer.Exit


app = typer.Typer(
    cls=VerbGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _global_options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            metavar="",
            callback=_print_version,
            is_eager=True,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    """LoRA adapters in, one LoRA adapter out: aligned, merged, measured and explained."""


for _verb in VERBS:
    app.command()(_verb)

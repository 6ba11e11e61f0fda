"""``gam-merge help [VERB]``: the help of a verb; of ``methods``, the manual of all of them."""

import typer

from gam_cli import _options as options


def help(ctx: typer.Context, verb: options.Verb = None) -> None:
    """Show the help of a verb, or with methods the manual of all methods."""
    assert ctx.parent is not None
    if verb == "methods":
        import gam_merge as gm
        from gam_cli import _present as present
        from gam_cli import _tables_methods as tables

        cards = {"methods": gm.methods(), "spaces": gm.spaces(), "plugins": gm.plugins()}
        present.show_pages(tables.manual(cards))
        return
    if verb is None:
        typer.echo(ctx.parent.get_help())
        return
    verbs = ctx.parent.command.commands  # type: ignore[attr-defined]
    if verb not in verbs:
        ctx.fail(f"unknown verb {verb!r}; expected one of {', '.join(verbs)}")
    command = verbs[verb]
    typer.echo(command.get_help(type(ctx)(command, info_name=verb, parent=ctx.parent)))

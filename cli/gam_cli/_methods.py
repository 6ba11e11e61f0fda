"""``gam-merge methods [NAME]``: what there is to merge with, and what one method is."""

from typing import Annotated

import typer

from gam_cli import _options as options


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A method, or a composition such as ties@knots or pico+tsvm+svc."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List the merge methods, or tell all about one."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_methods as tables
    from gam_merge._methods._registry import plugins, spaces

    if name is None:
        data = {
            "methods": [method.to_dict() for method in gm.methods()],
            "spaces": [space.to_dict() for space in spaces()],
            "plugins": [plugin.to_dict() for plugin in plugins()],
        }
        present.show(data, tables.of_methods(data), as_json=as_json, quiet=False)
    else:
        one = gm.get_method(name)
        present.show(one.to_dict(), tables.of_method(one), as_json=as_json, quiet=False)

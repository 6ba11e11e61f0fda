"""``gam-merge methods [NAME]``: what there is to merge with, and what one method is."""

from gam_cli import _options as options


def methods(name: options.MethodName = None, as_json: options.Json = False) -> None:
    """List the merge methods, or describe one."""
    import gam_merge as gm
    from gam_cli import _present as present
    from gam_cli import _tables_methods as tables

    if name is None:
        cards = {"methods": gm.methods(), "spaces": gm.spaces(), "plugins": gm.plugins()}
        present.show(cards, tables.of_methods(cards), as_json=as_json, quiet=False)
    else:
        method = gm.get_method(name)
        present.show(method, tables.of_method(method), as_json=as_json, quiet=False)

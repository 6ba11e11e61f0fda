"""``gam-merge schema KIND``: what the JSON of a result holds."""

from gam_cli import _options as options


def schema(kind: options.Kind) -> None:
    """Print the JSON Schema of what --json prints; for recipes there is recipe --schema."""
    import gam_merge as gm
    from gam_cli import _present as present

    present.show(gm.result_schema(kind), (), as_json=True, quiet=False)

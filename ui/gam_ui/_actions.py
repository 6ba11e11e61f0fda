"""What the buttons of the page do: each a call of the library, for one visitor.

An action takes the visitor, a function for its progress, and the values of its fields; it returns
the contents of the parts of the page that it changes.
"""

import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

import gam_merge as gm
from gam_ui._fields import params_in, rank_in, weights_in
from gam_ui._render import render, report
from gam_ui._visitors import Visitor, size_of

Progress = Callable[[int, int], None]  # (done, in all)
Contents = tuple[Any, ...]

NO_ADAPTERS = render("adapters.html", adapters={})
NO_ADVICE = render("no_advice.html")


def add_files(visitor: Visitor, progress: Progress, files: Sequence[str]) -> Contents:
    """Add the adapters in an upload."""
    for name, path in visitor.receive([Path(file) for file in files]):
        try:
            _add(visitor, name, gm.load(path))
        except gm.GamMergeError:
            shutil.rmtree(path if path.is_dir() else path.parent)
            raise
    return _listed(visitor)


def add_from_hub(visitor: Visitor, progress: Progress, text: str) -> Contents:
    """Add an adapter of the Hub."""
    if size_of(visitor.folder.parent) > visitor.limits.disk:
        raise gm.GamMergeError("the server is full; try again later")
    hub = gm.HubId.parse(text.strip(), max_bytes=visitor.limits.file)
    _add(visitor, str(hub), gm.load(hub))
    return _listed(visitor)


def start_over(visitor: Visitor, progress: Progress) -> Contents:
    """Remove everything of a visitor."""
    visitor.forget()
    visitor.folder.mkdir()
    return _listed(visitor)


def inspect(visitor: Visitor, progress: Progress, name: str | None) -> str:
    """Report on one adapter."""
    if name is None or name not in visitor.adapters:
        raise gm.GamMergeError("choose an adapter to inspect")
    return report(gm.inspect(visitor.adapters[name], progress=progress))


def compare(visitor: Visitor, progress: Progress, weights: str) -> Contents:
    """Compare all adapters: the advice, and the report that it rests on."""
    comparison = gm.compare(_sources(visitor), weights=weights_in(weights), progress=progress)
    return render("advice.html", comparison=comparison), report(comparison)


def describe(visitor: Visitor, progress: Progress, name: str) -> str:
    """Describe a method."""
    return card(name)


def plan(visitor: Visitor, progress: Progress, *fields: Any) -> str:
    """Say what a merge would do."""
    planned = gm.plan(_sources(visitor), **_options(*fields))
    return visitor.without_paths(render("plan.html", plan=planned, estimate=planned.estimate()))


def merge(visitor: Visitor, progress: Progress, *fields: Any) -> str:
    """Merge into an archive: what the merge did, and the link to it."""
    sources, options = _sources(visitor), _options(*fields)
    visitor.download.unlink(missing_ok=True)
    result = gm.merge(sources, out=visitor.merged, force=True, progress=progress, **options)
    with zipfile.ZipFile(visitor.download, "w") as archive:
        for file in sorted(visitor.merged.iterdir()):
            archive.write(file, f"merged/{file.name}")
    text = render(
        "merged.html",
        report=result.report,
        link=f"download/{visitor.key}",
        nbytes=visitor.download.stat().st_size,
    )
    return visitor.without_paths(text)


def push(visitor: Visitor, progress: Progress, repo: str, token: str, private: bool) -> str:
    """Upload the merge with the token of the visitor: the link to it."""
    if not visitor.merged.exists():
        raise gm.GamMergeError("nothing to push yet: merge first")
    if not token.strip():
        raise gm.GamMergeError("a Hub token with write access is needed to push")
    url = gm.push(visitor.merged, repo.strip(), private=private, token=token.strip())
    return render("pushed.html", url=url)


def card(name: str) -> str:
    """Return the description of a method."""
    method = gm.get_method(name)
    return render("method.html", method=method, card=method.to_dict())


def _add(visitor: Visitor, name: str, adapter: gm.Adapter) -> None:
    visitor.adapters[name] = replace(adapter, source=name)


def _listed(visitor: Visitor) -> Contents:
    """Return the list of adapters, the choice between them, and the emptied fields for files."""
    text = visitor.without_paths(render("adapters.html", adapters=visitor.adapters))
    names = list(visitor.adapters)
    return text, gr.Dropdown(names, value=names[0] if names else None), None, None


def _sources(visitor: Visitor) -> list[gm.Adapter]:
    if not visitor.adapters:
        raise gm.GamMergeError("no adapters yet: add at least one")
    return list(visitor.adapters.values())


def _options(method: str, weights: str, params: str, rank: str, form: str) -> Any:
    """Return the keyword arguments of merge and plan that the fields spell."""
    return {
        "method": method,
        "weights": weights_in(weights),
        "params": params_in(params),
        "rank": rank_in(rank),
        "format": form or None,
    }

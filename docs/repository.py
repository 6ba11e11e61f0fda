"""Pages of the site that lie elsewhere in the repository, and the links between all of them.

A hook of mkdocs. The pages of docs/ and of the root, and all that they link to, keep their places:
``docs/gam.md`` is ``gam.md``, ``README.md`` is ``index.md``, ``SECURITY.md`` is itself. Scripts
that are linked become pages with their source.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r'(?P<before>\]\(|(?:href|src|srcset)=")(?P<target>[^\s)"#]+)')
_SHOWN_AS_IT_IS = {".md", ".svg", ".png"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    for path in repository_files():
        if files.get_file_from_path(address(path)) is None:
            files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the places that their targets have on the site."""
    here = page.file.src_uri
    path = _source(here)

    def moved(link: re.Match[str]) -> str:
        target = linked_file(path, link["target"])
        if target is None:
            return link[0]
        return link["before"] + relpath(address(target), dirname(here) or ".")

    return markdown if path is None else _LINK.sub(moved, markdown)


def repository_files() -> list[str]:
    """Return the pages of docs/ and of the root and all files that they link to, as paths."""
    paths = [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("*.md"))]
    paths += [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob("docs/*.md"))]
    for path in paths:  # grows
        if path.endswith(".md"):
            paths += [target for target in linked_files(path) if target not in paths]
    return paths


def linked_files(path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for link in _LINK.finditer((ROOT / path).read_text("utf-8")):
        target = linked_file(path, link["target"])
        if target is not None:
            yield target


def linked_file(path: str, target: str) -> str | None:
    """Return the file that a link of a page leads to; None if it is not one of the repository."""
    if ":" in target:
        return None
    place = normpath(join(dirname(path), target))
    if (ROOT / place).is_dir():
        place = join(place, "README.md")
    return place if (ROOT / place).is_file() else None


def address(path: str) -> str:
    """Return the place of a file of the repository among the sources of the site."""
    if path == "README.md":
        return "index.md"
    shown = path if Path(path).suffix in _SHOWN_AS_IT_IS else f"{path}.md"
    return shown.removeprefix("docs/")


def _source(place: str) -> str | None:
    """Return the page of the repository behind a page of the site; None for a script."""
    for path in ("README.md" if place == "index.md" else place, f"docs/{place}"):
        if (ROOT / path).is_file():
            return path
    return None


def _file(path: str, config: MkDocsConfig) -> File:
    place = address(path)
    if place == path or path == "README.md":
        return File.generated(config, place, abs_src_path=str(ROOT / path))
    name, language = Path(path).name, Path(path).suffix[1:]
    text = f"# {name}\n\n```{language}\n{(ROOT / path).read_text('utf-8')}```\n"
    return File.generated(config, place, content=text)

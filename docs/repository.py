"""Pages of the site that lie elsewhere in the repository, and the links between all of them.

The pages of docs/ and of the root, and all that they link to, keep their places on the site:
``docs/gam.md`` is ``gam.md``, ``README.md`` is ``index.md``, ``SECURITY.md`` is itself. Scripts
that are linked become pages with their source.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath

ROOT = Path(__file__).parents[1]
LINK = re.compile(r'(?P<before>\]\(|(?:href|src|srcset)=")(?P<target>[^\s)"#]+)')
_SHOWN_AS_IT_IS = {".md", ".svg", ".png"}


def own_pages() -> list[str]:
    """Return the pages of the root and of docs/, as paths."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
    return [page.relative_to(ROOT).as_posix() for page in pages]


def repository_files() -> list[str]:
    """Return the pages of docs/ and of the root and all files that they link to, as paths."""
    paths = own_pages()
    for path in paths:  # grows
        if path.endswith(".md"):
            paths += sorted(set(linked_files(path)) - set(paths))
    return paths


def linked_files(path: str) -> Iterator[str]:
    """Yield the files of the repository that a page links to."""
    for link in links(path):
        target = linked_file(path, link)
        if target is not None:
            yield target


def links(path: str) -> list[str]:
    """Return the targets of the links of a page, without their anchors."""
    return [link["target"] for link in LINK.finditer((ROOT / path).read_text("utf-8"))]


def linked_file(path: str, target: str) -> str | None:
    """Return the file that a link of a page leads to, and None if the site does not show it.

    mkdocs leaves out hidden files, such as those of .github.
    """
    if ":" in target:
        return None
    place = normpath(join(dirname(path), target))
    if (ROOT / place).is_dir():
        place = join(place, "README.md")
    return place if (ROOT / place).is_file() and not place.startswith(".") else None


def exists(path: str, target: str) -> bool:
    """Return whether a link of a page leads to a place of the repository."""
    return (ROOT / dirname(path) / target).exists()


def address(path: str) -> str:
    """Return the place of a file of the repository among the sources of the site."""
    if path == "README.md":
        return "index.md"
    shown = path if Path(path).suffix in _SHOWN_AS_IT_IS else f"{path}.md"
    return shown.removeprefix("docs/")


def source(place: str) -> str | None:
    """Return the page of the repository behind a page of the site; None for a script."""
    for path in ("README.md" if place == "index.md" else place, f"docs/{place}"):
        if (ROOT / path).is_file():
            return path
    return None

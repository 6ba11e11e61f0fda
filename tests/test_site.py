"""The site: its links, its pages and its API; README.md in a terminal; the picture."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import repository
from test_docstrings import PUBLIC

ROOT = Path(__file__).parents[1]
PAGES = [path for path in repository.repository_files() if path.endswith(".md")]


@pytest.mark.parametrize("page", PAGES)
def test_links_within_the_repository_lead_to_files(page: str) -> None:
    for target in repository.links(page):
        outside = target.startswith(("https://", "mailto:"))
        assert outside or repository.exists(page, target), target


def test_places_on_the_site_are_found_again() -> None:
    for path in repository.repository_files():
        if path.endswith(".md"):
            assert repository.source(repository.address(path)) == path
    places = [repository.address(path) for path in repository.repository_files()]
    assert len(places) == len(set(places))


def test_the_api_has_every_public_name() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    shown = set(re.findall(r"^::: (\S+)$", page, re.M))
    types = {f"gam_merge.rules.{name}" for name in re.findall(r"^\| `(\w+)` \|", page, re.M)}
    integrations = {f"gam_merge.integrations.{n}" for n in ("diffusers", "peft", "transformers")}
    assert shown | types == PUBLIC.keys() | integrations


def test_readme_fits_a_terminal() -> None:
    """80 columns, but for the tags of the picture, which are not shown."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    assert [line for line in lines if len(line) > 80 and "<" not in line] == []
    assert len(lines) < 200


def test_the_quickstart_shows_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    names = [f"examples/adapters/{name}" for name in ("addition", "sorting", "spelling")]
    command = [sys.executable, "-m", "gam_merge", *names, "-o", "merged"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = [line.rstrip() for line in (done.stderr + done.stdout).splitlines()]
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8")
    shown = re.findall(r"^    (\S.*)$", page.partition("prints\n")[2].partition("\n- ")[0], re.M)
    assert len(shown) == 11
    assert [line for line in shown if line not in printed] == []


def test_the_picture_is_that_of_the_committed_figures() -> None:
    pytest.importorskip("matplotlib")
    import picture

    for path in picture.PICTURES.values():
        texts = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text("utf-8"))
        table = picture.losses()
        for task in picture.NAMES:
            rows = (picture.BASE, task, picture.MERGE)
            assert {f"{table[row][task]:.2f}" for row in rows} <= set(texts)
        shares = [text for text in texts if "is in the result" in text]
        assert shares == [f"{share:.0%} is in the result" for share in picture.merged().survival]


@pytest.mark.skipif(not find_spec("mkdocstrings"), reason="needs the extra docs")
def test_the_site_is_built(tmp_path: Path) -> None:
    """Strictly: a link that leads nowhere, or a page that no menu has, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for path in PAGES:
        assert (tmp_path / "site" / _built(path)).is_file(), path


def _built(path: str) -> str:
    """The file of the site that a page becomes."""
    place = repository.address(path).removesuffix(".md")
    folder = re.sub(r"(^|/)(index|README)$", "", place)
    return f"{folder}/index.html".removeprefix("/")

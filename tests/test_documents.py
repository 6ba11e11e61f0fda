"""Figures and HTML reports, looked at by a real browser; hostile names; failures in one line."""

import os
import re
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import browser
import helpers
import numpy as np
import pytest
import torch
from browser import Browser, chromium
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from matplotlib.colors import to_hex
from rich.cells import cell_len

import gam_merge as gm
from gam_merge import _diagnose
from gam_merge._common.names import Grid, grid, shortened
from gam_merge._diagnose.drawing import COLORS
from gam_merge._diagnose.panels import Curve, Curves, Heatmap
from gam_merge._diagnose.picture import picture_of

HOSTILE = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">$x^2$&amp;"


@pytest.fixture(scope="session")
def chrome() -> Iterator[Browser]:
    if reason := browser.missing():
        pytest.skip(reason)
    with chromium() as running:
        yield running


# Whether every text of a figure lies within it.
WITHIN = """[...document.querySelectorAll('svg text')].every(text => {
    const [inner, outer] = [text, text.ownerSVGElement].map(e => e.getBoundingClientRect());
    return inner.left > outer.left - 1 && inner.right < outer.right + 1;
})"""


def adapters(count: int) -> list[gm.Adapter]:
    """Of 30 layers of two types, one of them badly named, each with a bad name of its own."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.{kind}" for i in range(30) for kind in ("q_proj", HOSTILE)]
    made = []
    for i in range(count):
        factors = {name: helpers.random_factors(generator, 24, 16, 3) for name in names}
        made.append(helpers.adapter(factors, source=f"{HOSTILE}/{i}"))
    return made


@pytest.fixture(scope="module")
def found() -> dict[str, gm.Comparison | gm.Inspection]:
    return {"comparison": gm.compare(adapters(3)), "inspection": gm.inspect(adapters(1)[0])}


@pytest.fixture(scope="module")
def pages(found, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    return {name: each.save_html(folder / f"{name}.html") for name, each in found.items()}


KINDS = ("comparison", "inspection")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 1200), ("dark", 390)])
def test_a_page_in_a_browser(chrome, pages, kind, scheme, width):
    """It loads nothing and complains of nothing, does not scroll sideways, and follows the colours asked for."""
    chrome.open(pages[kind], scheme=scheme, width=width)
    assert chrome.complaints() == []
    assert chrome.run("performance.getEntriesByType('resource').length") == 0
    assert chrome.run("document.documentElement.scrollWidth <= innerWidth")
    assert chrome.run(
        "[...document.querySelectorAll('figure svg')].every(svg => svg.getBBox().width > 100)"
    )
    assert chrome.run(WITHIN)
    ink, paper = (
        sum(map(int, chrome.run(f"getComputedStyle(document.body).{name}.match(/\\d+/g)")))
        for name in ("color", "backgroundColor")
    )
    assert (ink - paper > 400) if scheme == "dark" else (paper - ink > 400)
    body = chrome.run("getComputedStyle(document.body).color")
    labels = chrome.run(
        "[...document.querySelectorAll('svg text')].map(text => getComputedStyle(text).fill)"
    )
    assert labels.count(body) > 0.8 * len(labels)  # all but numbers within coloured cells


@pytest.mark.parametrize("kind", KINDS)
def test_names_from_files_are_text(chrome, pages, kind):
    chrome.open(pages[kind])
    assert "owned" not in chrome.run("document.title.slice(0, 5)")
    assert chrome.run("document.querySelectorAll('script, img, iframe, object, link').length") == 0
    assert HOSTILE in chrome.run("document.body.textContent")
    assert "$x^2$&amp;" in chrome.run(
        "[...document.querySelectorAll('svg')].map(svg => svg.textContent).join()"
    )


def test_the_policy_is_in_force(chrome, pages):
    """Whatever got into the page, it could neither run nor load."""
    chrome.open(pages["comparison"])
    chrome.run(
        "document.body.insertAdjacentHTML('beforeend', '<img src=\"data:image/png;base64,AAAA\" onerror=\"1\">')"
    )
    (complaint, *_) = chrome.complaints()
    assert "Content Security Policy" in complaint


@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_whole(chrome, pages, kind):
    """Every id is there once, every reference within a figure leads somewhere, folded tables open."""
    chrome.open(pages[kind])
    ids = chrome.run("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    targets = chrome.run(
        "[...document.querySelectorAll('use')].map(u => u.getAttribute('xlink:href').slice(1))"
    )
    assert set(targets) <= set(ids)
    assert chrome.run("document.querySelectorAll('details tr').length") > 60
    chrome.driver.find_elements("css selector", "summary")[-1].click()
    assert chrome.run("[...document.querySelectorAll('details')].at(-1).open")


def test_the_figures_show_the_figures(found):
    from gam_merge._diagnose import figures

    comparison = found["comparison"]
    drawn = figures.draw_sheet(comparison._sheet()).axes[0].collections[0].get_array()
    np.testing.assert_array_equal(drawn, comparison.grid("times_chance_u").values)


def test_a_picture_has_a_cell_for_each_number():
    """In the colour of the map at that number, next to each other without a gap; none for NaN."""
    values = np.array([[0.0, 1.0, 2.0], [np.nan, 4.0, 3.0]])
    shown = Grid(("layers.0", "layers.1", "layers.2"), ("a", "b"), values, (2, 3))
    rects = picture_of(Heatmap("title", shown)).rects[:5]
    expected = colormaps["viridis"](values[np.isfinite(values)] / 4)
    assert [rect.color for rect in rects] == [to_hex(color) for color in expected]
    first, second, _, below, _ = rects
    assert (first.x + first.width, first.y) == (second.x, second.y)
    assert (second.x, second.y + second.height) == (below.x, below.y)


def test_a_curve_passes_its_points():
    """On axes whose ticks are at their numbers; a logarithm leaves zeros out."""
    curve = Curve("label", np.array([20.0, 21.0, 22.0]), np.array([10.0, 1.0, 0.0]))
    picture = picture_of(Curves("title", "x", "y", [curve], log=True))
    points = next(line.points for line in picture.strokes if line.color == COLORS[0])
    places = {label.text: (label.x, label.y - 4) for label in picture.labels}
    assert [place[1] for place in points] == pytest.approx([places["10"][1], places["1"][1]])
    assert points[1][0] == pytest.approx(places["21"][0])


def test_long_names_of_layers_do_not_touch():
    layers = tuple(f"lora_unet_down_blocks_{i}" for i in range(25))
    picture = picture_of(Heatmap("title", Grid(layers, ("a",), np.ones((1, 25)), (1, 25))))
    named = [label for label in picture.labels if label.text in layers]
    assert len(named) > 3
    for left, right in pairwise(named):
        assert right.x - left.x > cell_len(right.text) * 6.6  # pixels of a character


def test_a_grid_that_is_too_large_is_pooled():
    """Neighbours are averaged, cells without a module apart."""
    names = [f"layers.{i}.t{j}" for i in range(5) for j in range(3) if i != j]
    exact = grid(names, lambda members: float(members[0]))
    assert exact.values.shape == exact.sizes == (3, 5)
    assert exact.pooled == (1, 1)
    pooled = grid(names, lambda members: float(members[0]), most=(2, 3))
    assert (pooled.sizes, pooled.pooled) == ((3, 5), (2, 2))
    assert pooled.layers == ("layers.0", "layers.2", "layers.4")
    assert pooled.types == ("t0", "t2")
    for row, column in np.ndindex(2, 3):
        block = exact.values[2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert pooled.values[row, column] == pytest.approx(np.nanmean(block))


@given(st.lists(st.text("ab.", min_size=1, max_size=8), max_size=8, unique=True))
def test_short_labels_are_tails_that_no_other_label_shares(labels):
    short = shortened(labels)
    assert list(short) == labels
    for label, tail in short.items():
        words, size = label.split("."), len(tail.split("."))
        assert words[-size:] == tail.split(".")
        rivals = [other.split(".") for other in labels if other != label]
        shared = [k for k in range(1, len(words)) if any(w[-k:] == words[-k:] for w in rivals)]
        assert size == next((k for k in range(1, len(words)) if k not in shared), len(words))


@pytest.mark.parametrize("save", ["save_html", "save_plot"])
def test_only_a_regular_file_is_replaced(found, save, tmp_path):
    out, target = tmp_path / "out.png", tmp_path / "mine"
    target.write_text("mine")
    for make in (lambda: out.symlink_to(target), lambda: out.symlink_to("nowhere"),
                 lambda: os.mkfifo(out), out.mkdir):  # fmt: skip
        make()
        before = out.lstat().st_ino
        with pytest.raises(gm.GamMergeError, match="is not a regular file"):
            getattr(found["inspection"], save)(out)
        assert out.lstat().st_ino == before
        out.rmdir() if out.is_dir() and not out.is_symlink() else out.unlink()
    assert target.read_text() == "mine"
    out.write_text("old")
    getattr(found["inspection"], save)(out)
    assert out.read_bytes()[:4] in (b"\x89PNG", b"<!DO")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "out.png"]


@pytest.mark.parametrize(
    ("kind", "suffix", "magic"),
    [
        ("comparison", "png", b"\x89PNG"),
        ("comparison", "svg", b"<?xml"),
        ("inspection", "svg", b"<?xml"),
        ("inspection", "pdf", b"%PDF"),
    ],
)
def test_plots(found, tmp_path, kind, suffix, magic):
    path = found[kind].save_plot(tmp_path / f"plot.{suffix}")
    content = path.read_bytes()
    assert content.startswith(magic)
    assert found[kind].save_plot(path).read_bytes() == content
    if suffix == "svg":
        assert "$x^2$&amp;" in "".join(ET.fromstring(content).itertext())


def test_odd_adapters_have_pages_too(tmp_path):
    """No overlap to speak of, one module, nothing but zeros, no module at all."""
    generator = torch.Generator().manual_seed(1)
    b, a = helpers.random_factors(generator, 8, 6, 2)
    apart = helpers.stack([(b, a), (0 * b, a)])
    zero = helpers.stack([(torch.zeros(8, 2), torch.ones(2, 6))] * 2)
    none = gm.Adapter("none", {}, None, {})
    for i, odd in enumerate(
        (gm.compare(apart), gm.compare(zero), gm.inspect(zero[0]), gm.inspect(none))
    ):
        page = odd.save_html(tmp_path / f"{i}.html").read_text()
        assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    with pytest.raises(gm.GamMergeError, match="no figure without LoRA modules"):
        odd.save_plot(tmp_path / "none.svg")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra(found, tmp_path, monkeypatch, package):
    for name in ("drawing", "figures", "html", "picture"):
        monkeypatch.delitem(sys.modules, f"gam_merge._diagnose.{name}", raising=False)
        monkeypatch.delattr(_diagnose, name, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(gm.GamMergeError, match=rf"{package}; pip install 'gam-merge\[plot\]'"):
        found["comparison"].save_html(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(found, tmp_path):
    with pytest.raises(gm.GamMergeError, match="png, svg, pdf"):
        found["comparison"].save_plot(tmp_path / "plot.jpeg")
    with pytest.raises(gm.GamMergeError, match="cannot be written"):
        found["comparison"].save_plot(tmp_path / "nowhere" / "plot.png")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(gm.GamMergeError, match="is not a regular file"):
        found["inspection"].save_html(tmp_path / "folder.html")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.html"]

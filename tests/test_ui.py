"""The page in a real browser, and what a server that shows it to strangers refuses."""

import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import browser
import pytest
import torch
import yaml
from browser import Browser, chromium
from helpers import random_factors, write_adapter
from hub_server import TOKEN, Hub
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_merge._read.formats import format_names

ROOT = Path(__file__).parents[1]
ADAPTERS = [ROOT / "examples" / "adapters" / name for name in ("addition", "sorting")]
PARTS = ("adapter_config.json", "adapter_model.safetensors")
WEIGHTS = "adapter_model.safetensors"
FIELDS = ("auto", "", "", "", "")  # method, weights, parameters, rank, format
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

pytestmark = pytest.mark.skipif(find_spec("gradio") is None, reason="needs the extra ui")


def clients() -> Any:
    from benchmarks import ui

    return ui


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    if reason := browser.missing():
        pytest.skip(reason)
    with chromium() as running:
        yield running


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A server whose temporary files are in a folder, started where the adapters are paths."""
    packages = [str(ROOT / part) for part in ("", "kernels", "cli", "ui")]
    path = os.pathsep.join([*packages, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder), **more}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The address of a page, and the folder of its temporary files."""
    folder = tmp_path_factory.mktemp("server")
    limits = "idle=600, grace=1, file=20_000_000, visitor=30_000_000"
    with clients().served(limits, environment=environment(folder)) as (url, _):
        yield url, folder


def files_of(adapter: Path) -> list[Path]:
    return [adapter / part for part in PARTS]


def wait(chrome: Browser, condition: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not chrome.run(condition):
        assert time.monotonic() < end, chrome.run("document.body.innerText")
        time.sleep(0.05)


def visit(chrome: Browser, url: str, *, width: int = 1200, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    chrome.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    chrome.driver.get(url)
    wait(chrome, "!!document.querySelector('#files input[type=file]')")


def element(chrome: Browser, selector: str) -> Any:
    return chrome.driver.find_element("css selector", selector)


def drop(chrome: Browser, files: list[Path], field: str = "#files") -> None:
    element(chrome, f"{field} input[type=file]").send_keys("\n".join(map(str, files)))


def add(chrome: Browser, files: list[Path], count: int, field: str = "#files") -> None:
    """Add adapters, and wait until the list has so many."""
    drop(chrome, files, field)
    wait(chrome, f"document.querySelectorAll('#adapters tbody tr').length === {count}")
    wait(chrome, f"!!document.querySelector('{field} input[type=file]')")


def click(chrome: Browser, selector: str, condition: str) -> None:
    """Click on a button once it stands still, as what is above it may have grown."""
    button = f"document.querySelector('{selector}')"
    chrome.run(f"{button}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    places = [-1, 0]
    while places[-1] != places[-2]:
        time.sleep(0.2)
        places.append(chrome.run(f"{button}.getBoundingClientRect().top"))
    element(chrome, selector).click()
    wait(chrome, condition)


def download(chrome: Browser) -> zipfile.ZipFile:
    link = chrome.run("document.querySelector('a.download').href")
    with urllib.request.urlopen(link) as answer:
        return zipfile.ZipFile(io.BytesIO(answer.read()))


# The console has a line that gradio's own scripts write for each upload.
HARMLESS = "Method not implemented"


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_from_upload_to_download(chrome, page, tmp_path, width, scheme):
    url, temporary = page
    start = time.monotonic()
    visit(chrome, url, width=width, scheme=scheme)
    for count, adapter in enumerate(ADAPTERS, start=1):
        add(chrome, files_of(adapter), count)
    click(chrome, "#inspect", "document.querySelector('#report iframe')?.srcdoc.includes('<svg')")
    click(chrome, "#compare", "document.querySelector('#advice').innerText.includes('Advice')")
    element(chrome, "#weights input, #weights textarea").send_keys("0.7, 0.3")
    click(chrome, "#plan", "document.querySelector('#result').innerText.includes('To write')")
    click(chrome, "#merge", "!!document.querySelector('a.download')")
    archive = download(chrome)
    assert time.monotonic() - start < 120

    assert chrome.run("Math.max(document.documentElement.scrollWidth, innerWidth)") <= width
    assert [text for text in chrome.complaints() if HARMLESS not in text] == []
    expected = gm.merge(ADAPTERS, weights=[0.7, 0.3], out=tmp_path / "expected")
    archive.extractall(tmp_path)
    merged, direct = (load_file(tmp_path / name / WEIGHTS) for name in ("merged", "expected"))
    assert set(merged) == set(direct)
    assert all(torch.equal(merged[key], direct[key]) for key in direct)
    assert f"{100 * expected.report.survival[0]:.1f} %" in chrome.run("document.body.innerText")
    for name in archive.namelist():
        assert str(temporary).encode() not in archive.read(name), name
    assert str(temporary) not in chrome.driver.page_source


def test_a_directory_is_an_adapter(chrome, page):
    visit(chrome, page[0])
    element(chrome, "#folder input[type=file]").send_keys(str(ADAPTERS[0]))
    wait(chrome, "document.querySelectorAll('#adapters tbody tr').length === 1")
    assert "SmolLM2" in element(chrome, "#adapters").text


def test_two_visitors_at_once(page, tmp_path):
    """Each in a browser of their own: the same file of the first, another of the second."""
    if reason := browser.missing():
        pytest.skip(reason)

    def merge(adapter: Path) -> zipfile.ZipFile:
        with chromium() as chrome:
            visit(chrome, page[0])
            add(chrome, files_of(ADAPTERS[0]), 1)
            add(chrome, files_of(adapter), 2)
            click(chrome, "#merge", "!!document.querySelector('a.download')")
            return download(chrome)

    with ThreadPoolExecutor(2) as pool:
        archives = list(pool.map(merge, ADAPTERS))
    for number, (archive, adapter) in enumerate(zip(archives, ADAPTERS, strict=True)):
        folder = tmp_path / str(number)
        archive.extractall(folder)
        gm.merge([ADAPTERS[0], adapter], out=folder / "direct")
        merged, direct = (load_file(folder / name / WEIGHTS) for name in ("merged", "direct"))
        assert all(torch.equal(merged[key], direct[key]) for key in direct)


def test_a_hostile_file_is_text_or_refused(chrome, page, tmp_path):
    """Markup in the names of a file, of its modules and of its base model; files that lie."""
    factors = {f"layers.0.{HOSTILE}": random_factors(torch.Generator().manual_seed(0), 8, 6, 2)}
    write_adapter(tmp_path / "a", factors, base_model_name_or_path=HOSTILE, task_type="CAUSAL_LM")
    visit(chrome, page[0])
    add(chrome, files_of(tmp_path / "a"), 1)
    assert HOSTILE in element(chrome, "#adapters").text
    click(chrome, "#inspect", "!!document.querySelector('#report iframe')")
    click(chrome, "#merge", "!!document.querySelector('a.download')")

    named = tmp_path / "<img src=x onerror=alert(1)>.safetensors"
    named.write_bytes(b"\xff" * 100)
    drop(chrome, [named])
    wait(chrome, "document.body.innerText.includes('.safetensors: ')")
    assert chrome.run("document.title") == "gam-merge"
    assert chrome.run("document.querySelectorAll('img[src=x]').length") == 0
    assert len(chrome.driver.find_elements("css selector", "#adapters tbody tr")) == 1


@pytest.mark.parametrize("kind", ["pickle", "truncated", "nan", "no adapter", "not JSON"])
def test_what_the_library_refuses_is_one_line(page, tmp_path, kind):
    ui = clients()
    client = ui.Client(page[0])
    folder = tmp_path / "bad"
    factors = {"layers.0.q": random_factors(torch.Generator().manual_seed(0), 8, 6, 2)}
    if kind == "nan":
        factors["layers.0.q"][0][:] = float("nan")
    write_adapter(folder, factors)
    files = files_of(folder)
    if kind == "pickle":
        files = [folder / "model.bin"]
        files[0].write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    elif kind == "truncated":
        files[1].write_bytes(files[1].read_bytes()[:-8])
    elif kind == "no adapter":
        save_file({"model.norm.weight": torch.ones(2)}, files[1])
    elif kind == "not JSON":
        files[0].write_text("{")

    def use() -> None:
        client.add(files)
        client.act("merge", *FIELDS)

    with pytest.raises(ui.Refused) as refused:
        use()
    assert "\n" not in str(refused.value)
    assert str(page[1]) not in str(refused.value)
    assert len(str(refused.value)) > 20


@pytest.mark.parametrize(
    "address",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../../../etc/passwd",
        f"/gradio_api/file={ROOT / 'pyproject.toml'}",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/gradio_api//file=/etc/passwd",
        "/gradio_api/%66ile=/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/monitoring/summary",
        "/gradio_api/component_server",
        "/static/../../../../etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc/passwd",
        "/download/..%2f..%2fetc%2fpasswd",
        "/download/v",
    ],
)
def test_no_address_is_a_path_of_the_server(page, address):
    with closing(HTTPConnection(page[0].removeprefix("http://"))) as connection:
        connection.putrequest("GET", address)  # sent as it is written
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status in (400, 403, 404, 405)
        assert b"root:" not in answer.read()


def test_an_upload_cannot_be_read_by_its_address(page):
    """Gradio alone would give it to anyone who knows what is in it."""
    client = clients().Client(page[0])
    (file,) = client.upload([ADAPTERS[0] / PARTS[0]])
    assert Path(file["path"]).is_file()
    assert client.http.get(f"/gradio_api/file={file['path']}").status_code == 403


@pytest.mark.parametrize("path", ["/etc/passwd", str(ADAPTERS[0] / WEIGHTS), "../../etc/passwd"])
def test_no_event_takes_a_path_of_the_server(page, path):
    ui = clients()
    client = ui.Client(page[0])
    with pytest.raises(ui.Refused):
        client.act("add_files", [ui.file_data(path)])
    assert "No adapters yet" in client.act("start_over")[0]


@pytest.mark.parametrize("text", [str(ADAPTERS[0]), "examples/adapters", "../x", "tests/support"])
def test_a_hub_id_is_never_a_path(page, text):
    ui = clients()
    with pytest.raises(ui.Refused, match=r"Hub|HF_HUB_OFFLINE"):
        ui.Client(page[0]).act("add_from_hub", text)


def test_uploads_are_limited(page, tmp_path):
    ui = clients()
    client = ui.Client(page[0])
    large = tmp_path / "large.safetensors"
    for nbytes, status in ((21_000_000, 413), (31_000_000, 413)):
        large.write_bytes(b"0" * nbytes)
        with pytest.raises(clients().httpx.HTTPStatusError) as refused:
            client.upload([large])
        assert refused.value.response.status_code == status
    large.write_bytes(b"0" * 19_000_000)
    with pytest.raises(ui.Refused):  # not an adapter, and not kept
        client.add([large])
    one, two = client.upload([large]), client.upload([large])
    with pytest.raises(ui.Refused, match="must not exceed 30 MB, got 38 MB"):
        client.act("add_files", [*one, *two])
    unsaid = client.http.post("/gradio_api/upload", content=iter([b"x"]))
    assert unsaid.status_code == 411


def test_a_full_server_refuses(tmp_path):
    ui = clients()
    with ui.served("disk=6_000_000", environment=environment(tmp_path)) as (url, _):
        client = ui.Client(url)
        client.add(files_of(ADAPTERS[0]))  # 4.9 MB
        with pytest.raises(clients().httpx.HTTPStatusError) as refused:
            client.upload(files_of(ADAPTERS[1]))
        assert refused.value.response.status_code == 507


def held(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_nothing_of_a_visitor_stays(chrome, tmp_path):
    ui = clients()
    limits = "grace=0.5, idle=8"
    with ui.served(limits, environment=environment(tmp_path)) as (url, _):
        visit(chrome, url)
        add(chrome, files_of(ADAPTERS[0]), 1)
        folders = list(tmp_path.glob("gam-merge-ui-*/v*"))
        assert len(folders) == 1
        chrome.driver.get("about:blank")  # closes the page
        idle = ui.Client(url)  # never says that it leaves
        idle.add(files_of(ADAPTERS[1]))
        end = time.monotonic() + 40
        while list(tmp_path.glob("gam-merge-ui-*/v*")) or held(tmp_path):
            assert time.monotonic() < end, held(tmp_path)
            time.sleep(0.2)
        assert "No adapters yet" in idle.act("start_over")[0]
    assert list(tmp_path.glob("gam-merge-ui-*")) == []


def test_the_token_of_the_server_is_not_used(tmp_path):
    """A visitor gets what is public, pushes with a token of their own, and large files are refused."""
    ui = clients()
    files = {part: (ADAPTERS[0] / part).read_bytes() for part in PARTS}
    with Hub() as hub:
        hub.add("org/public", files)
        hub.add("org/private", files, private=True)
        variables = environment(
            tmp_path,
            HF_ENDPOINT=hub.url,
            HF_HUB_OFFLINE="0",
            HF_TOKEN=TOKEN,
            HF_HUB_DISABLE_XET="1",
        )
        limits = "file=5_000_000"
        with ui.served(limits, environment=variables) as (url, _):
            client = ui.Client(url)
            assert "org/public" in client.act("add_from_hub", "org/public")[0]
            with pytest.raises(ui.Refused, match="private"):
                client.act("add_from_hub", "org/private")
            assert all(token is None for _, token in hub.requests)
            client.act("merge", *FIELDS)
            with pytest.raises(ui.Refused, match="token"):
                client.act("push", "me/merged", "", False)
            assert "me/merged" in client.act("push", "me/merged", TOKEN, False)[0]
            assert WEIGHTS in hub.files("me/merged")
            hub.add("org/large", {**files, WEIGHTS: bytes(5_000_001)})
            with pytest.raises(ui.Refused, match="must have at most 5000000 bytes, got 5000001"):
                client.act("add_from_hub", "org/large")


def test_fields_say_what_they_want(page):
    ui = clients()
    client = ui.Client(page[0])
    client.add(files_of(ADAPTERS[0]))
    for fields, message in (
        (("auto", "many", "", "", ""), "weights must be numbers such as 0.7 0.3, got"),
        (("auto", "", "lam", "", ""), "a parameter must be NAME=VALUE, got"),
        (("auto", "", "", "high", ""), "rank must be a positive integer, got"),
        (("gum", "", "", "", ""), "gum"),
        (("ties", "", "density=0.2\nscale=x", "", ""), "scale of method ties"),
    ):
        with pytest.raises(ui.Refused, match=re.escape(message)):
            client.act("plan", *fields)
    assert "rank 4" in client.act("plan", "ties", "", "density=0.2", "4", "")[0]


def test_the_page_offers_every_format():
    from gam_ui._page import FORMATS

    assert {name for name in FORMATS if isinstance(name, str)} == set(format_names())


def test_without_gradio_the_extra_is_named():
    code = "import sys; sys.modules['gradio'] = None; sys.argv = ['gam-merge', 'ui']; from gam_cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(Path("/tmp"))
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: the page needs gradio; pip install 'gam-merge[ui]'\n"


def test_the_space_is_the_page():
    """What the Hub reads of a Space, and that its app is the page."""
    space = ROOT / "examples" / "space"
    matter = yaml.safe_load((space / "README.md").read_text("utf-8").split("---\n")[1])
    assert matter["sdk"] == "gradio"
    assert (space / matter["app_file"]).read_text("utf-8").count("gam_ui.serve") == 1
    assert re.fullmatch(r"gam-merge\[.*\bui\b.*\].*\n", (space / "requirements.txt").read_text())


def test_the_space_runs(tmp_path):
    variables = environment(tmp_path, GRADIO_SERVER_PORT="7979", GRADIO_SERVER_NAME="127.0.0.1")
    app = ROOT / "examples" / "space" / "app.py"
    process = subprocess.Popen([sys.executable, str(app)], env=variables)
    try:
        clients().wait_for("http://127.0.0.1:7979", process)
        assert "auto" in clients().Client("http://127.0.0.1:7979").act("describe", "auto")[0]
    finally:
        process.terminate()
        process.wait(60)


def test_the_size_of_a_folder_whose_visitors_leave(tmp_path: Path) -> None:
    """Folders are removed while their files are counted."""
    from gam_ui._visitors import size_of

    (tmp_path / "stays").write_bytes(b"12345")
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            deep = tmp_path / "visitor" / "deep"
            deep.mkdir(parents=True)
            (deep / "file").write_bytes(b"x")
            shutil.rmtree(tmp_path / "visitor")

    visitors = threading.Thread(target=come_and_go)
    visitors.start()
    try:
        sizes = {size_of(tmp_path) for _ in range(1000)}
    finally:
        stop.set()
        visitors.join()
    assert sizes <= {5, 6}

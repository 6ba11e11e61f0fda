"""Times the actions of the page under ten visitors at once, over loopback.

Each visitor is a client of the page's own protocol: opens it, uploads two adapters, inspects one,
compares, plans and merges, with pauses between the actions.
"""

import json
import random
import secrets
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from benchmarks import page
from benchmarks.measure import RESULTS, save, table

_PAGE = page.PAGE.with_name("ui.md")
_ADAPTERS = Path(__file__).parents[1] / "examples" / "adapters"
_NAMES = ("adapter_config.json", "adapter_model.safetensors")
_FIELDS = ("auto", "", "", "", "")  # method, weights, parameters, rank, format
_SECONDS = 120.0  # for the server to start, and for any answer


class Refused(Exception):
    """What the page says instead of an answer."""


class Client:
    """One open page, without a browser."""

    def __init__(self, url: str, session: str | None = None) -> None:
        self.http = httpx.Client(
            base_url=url,
            timeout=_SECONDS,
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # none is left open
        )
        self.session = session or secrets.token_hex(8)
        events = self.http.get("/config").json()["dependencies"]
        self.events: dict[str, int] = {event["api_name"]: event["id"] for event in events}

    def upload(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        """Send files; return them as events take them."""
        parts = [("files", (file.name, file.read_bytes())) for file in files]
        answer = self.http.post("/gradio_api/upload", files=parts)
        answer.raise_for_status()
        return [file_data(path) for path in answer.json()]

    def act(self, action: str, *values: Any) -> list[Any]:
        """Run an action of the page; return what it changes. Raises Refused."""
        event = {
            "data": values,
            "fn_index": self.events[action],
            "session_hash": self.session,
        }
        self.http.post("/gradio_api/queue/join", json=event).raise_for_status()
        address = f"/gradio_api/queue/data?session_hash={self.session}"
        with self.http.stream("GET", address) as stream:
            for line in stream.iter_lines():
                message = json.loads(line.removeprefix("data:")) if line else {}
                if message.get("msg") == "process_completed":
                    output = message["output"]
                    if not message["success"]:
                        raise Refused(str(output.get("error")))
                    data: list[Any] = output["data"]
                    return data
        raise Refused("no answer")

    def open(self) -> None:
        """Load the page."""
        self.http.get("/").raise_for_status()

    def add(self, files: Sequence[Path]) -> list[Any]:
        """Upload files and add the adapters in them."""
        return self.act("add_files", self.upload(files))


def file_data(path: str) -> dict[str, Any]:
    """Return a file on the server as events take it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


@contextmanager
def served(
    limits: str = "", *, environment: Mapping[str, str] | None = None
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Run the page in a process of its own: its address, and the process.

    limits: arguments of ``Limits`` as Python.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import gam_ui; gam_ui.serve('127.0.0.1', {port}, limits=gam_ui.Limits({limits}))"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process)
        yield url, process
    finally:
        process.terminate()
        process.wait(_SECONDS)


def wait_for(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            httpx.get(url, trust_env=False, timeout=_SECONDS).raise_for_status()
        except httpx.TransportError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the page did not start within {_SECONDS:.0f} s")


def main(*, visitors: int, pause: float, rounds: int) -> None:
    """Print a table, write benchmarks/results/ui.json and the table of docs/ui.md."""
    times: dict[str, list[float]] = {}
    with served() as (url, _), ThreadPoolExecutor(visitors) as pool:
        jobs = [pool.submit(_visit, url, seed, pause, rounds, times) for seed in range(visitors)]
        for job in jobs:
            job.result()
    rows = [_row(name, values) for name, values in times.items()]
    quick: list[float] = []
    for name, values in times.items():
        if name != "merge":
            quick += values
    rows.append(_row("all but merge", quick))
    print(table(rows))
    print(save("ui", rows, visitors=visitors, pause=pause, rounds=rounds))
    write_page()


def write_page() -> None:
    """Write the table of docs/ui.md from the results."""
    results = json.loads((RESULTS / "ui.json").read_text())
    host = results["machine"]
    where = f"Measured on {host['cpu']} with {host['cores']} hardware threads."
    page.write("ui", f"{table(results['rows'])}\n\n{where}", _PAGE)


def _visit(url: str, seed: int, pause: float, rounds: int, times: dict[str, list[float]]) -> None:
    """Do everything that a visitor does, a few times, and take the times."""
    draw = random.Random(seed)
    for _ in range(rounds):
        client = Client(url)
        actions: list[tuple[str, Callable[[], Any]]] = [("open the page", client.open)]
        for name in ("addition", "sorting"):
            files = [_ADAPTERS / name / part for part in _NAMES]
            actions.append(("add", partial(client.add, files)))
        actions += [
            ("inspect", partial(client.act, "inspect", "adapter-1")),
            ("compare", partial(client.act, "compare", "")),
            ("plan", partial(client.act, "plan", *_FIELDS)),
            ("merge", partial(client.act, "merge", *_FIELDS)),
        ]
        for name, action in actions:
            time.sleep(draw.uniform(0.5, 1.5) * pause)
            start = time.perf_counter()
            action()
            times.setdefault(name, []).append(time.perf_counter() - start)


def _row(name: str, seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "action": name,
        "count": len(seconds),
        "median s": statistics.median(seconds),
        "p95 s": statistics.quantiles(seconds, n=20)[-1],
        "longest s": max(seconds),
    }

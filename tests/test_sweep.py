"""examples/sweep.py on real workers: 200 merges, some of which are killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers import digest, random_factors, write_adapter

import gam_merge as gm

SCRIPT = Path(__file__).parents[1] / "examples" / "sweep.py"
COUNT = 200
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "", "RAY_AUTH_MODE": "disabled"}
CLUSTERS = pytest.mark.parametrize(("on", "package"), [("dask", "distributed"), ("ray", "ray")])


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    paths: list[Path] = []
    for i in range(3):
        factors = {f"{j}.w": random_factors(generator, 48, 32, 4, torch.float32) for j in range(4)}
        paths.append(write_adapter(tmp_path_factory.mktemp("adapters") / str(i), factors))
    return paths


def start(
    adapters: Sequence[Path], out: Path, on: str, count: int = COUNT, *more: str
) -> subprocess.Popen:
    """Start a sweep in a process group of its own."""
    options = ["--out", str(out), "--count", str(count), "--on", on, *more]
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, adapters), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )


def finish(sweep: subprocess.Popen) -> tuple[int, str]:
    """Wait for a sweep: its exit code, and what it printed."""
    printed, complaints = sweep.communicate(timeout=300)
    assert printed, complaints
    return sweep.returncode, printed


def reports(out: Path) -> dict[Path, int]:
    """The reports of finished merges, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in out.glob("merges/*/merge_report.json")}


def wait_for_merges(sweep: subprocess.Popen, out: Path, least: int) -> None:
    end = time.monotonic() + 120
    while len(reports(out)) < least:
        assert sweep.poll() is None, sweep.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def a_worker(sweep: subprocess.Popen, on: str) -> int:
    """The process of a worker; of Ray, one that is at work."""
    psutil = pytest.importorskip("psutil")
    mark = {"dask": "spawn_main", "ray": "ray::<lambda>"}[on]
    while True:
        for process in psutil.Process(sweep.pid).children(recursive=True):
            if mark in " ".join(process.cmdline()):
                return process.pid


def rows(out: Path) -> list[dict[str, str]]:
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


@CLUSTERS
def test_a_worker_that_is_killed_loses_nothing(on, package, adapters, tmp_path):
    pytest.importorskip(package)
    sweep = start(adapters, tmp_path, on)
    wait_for_merges(sweep, tmp_path, 20)
    os.kill(a_worker(sweep, on), signal.SIGKILL)
    assert len(reports(tmp_path)) < COUNT
    code, printed = finish(sweep)
    assert (code, printed.splitlines()[-1]) == (0, f"0 failed; wrote {tmp_path}/results.csv")
    table = rows(tmp_path)
    assert len({row["recipe"] for row in table}) == COUNT
    assert all(float(row["norm_ratio"]) > 0 and not row["error"] for row in table)
    some = table[7]["recipe"]
    gm.merge_recipe(tmp_path / "recipes" / f"{some}.yaml", out=tmp_path / "here")
    assert digest(tmp_path / "merges" / some) == digest(tmp_path / "here")


def test_a_sweep_that_is_killed_goes_on(adapters, tmp_path):
    count = 60
    sweep = start(adapters, tmp_path, "processes", count)
    wait_for_merges(sweep, tmp_path, 20)
    os.killpg(sweep.pid, signal.SIGKILL)  # the workers, too: as if the machine stopped
    sweep.communicate()
    before = reports(tmp_path)
    assert 20 <= len(before) < count
    code, printed = finish(start(adapters, tmp_path, "processes", count))
    assert code == 0
    assert printed.startswith(f"{count} recipes, {len(before)} merged before")
    after = reports(tmp_path)
    assert len(after) == len(rows(tmp_path)) == count
    assert before.items() <= after.items()  # what was done is not done again
    names = {report.parent.name for report in after}
    hidden = {path.name for path in (tmp_path / "merges").iterdir()} - names
    # of a merge that was in its place when the kill came before the end of the clearing
    kept = {name.removeprefix(".").split(".")[0] for name in hidden}
    assert kept <= {report.parent.name for report in before}
    assert not list(tmp_path.glob("merges/.*/new"))
    _, printed = finish(start(adapters, tmp_path, "processes", count))
    assert printed.startswith(f"{count} recipes, {count} merged before")
    assert reports(tmp_path) == after


def test_a_merge_that_fails_is_a_row_with_its_error(adapters, tmp_path):
    factors = torch.full((48, 4), torch.nan), torch.ones(4, 32)
    broken = write_adapter(tmp_path / "broken", {"0.w": factors})
    code, printed = finish(start([*adapters, broken], tmp_path / "out", "processes", count=2))
    assert code == 1
    assert "2 failed" in printed
    assert all("NaN" in row["error"] and not row["norm_ratio"] for row in rows(tmp_path / "out"))


def test_the_address_of_a_cluster(adapters, tmp_path):
    """A scheduler and a worker, each started by its own command."""
    pytest.importorskip("distributed")
    file = tmp_path / "scheduler.json"
    place = ["--scheduler-file", str(file), "--no-dashboard"]
    scheduler = ["dask_scheduler", *place, "--port", "0", "--host", "127.0.0.1"]
    worker = ["dask_worker", *place, "--nthreads", "1"]
    processes = [daemon(command) for command in (scheduler, worker)]
    try:
        while not file.exists():
            time.sleep(0.1)
        address = json.loads(file.read_text())["address"]
        sweep = start(adapters, tmp_path, "dask", 3, "--address", address)
        assert finish(sweep)[0] == 0
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    assert [row["error"] for row in rows(tmp_path)] == [""] * 3


def daemon(command: list[str]) -> subprocess.Popen:
    name, *options = command
    return subprocess.Popen(
        [sys.executable, "-m", f"distributed.cli.{name}", *options],
        env=ENVIRONMENT,
        stderr=subprocess.DEVNULL,
    )


def test_ray_merges_to_the_same_bytes(adapters, tmp_path):
    pytest.importorskip("ray")
    call = "from executors import executor; import gam_merge as gm; import sys\n"
    call += "with executor('ray') as pool: gm.merge(sys.argv[2:], out=sys.argv[1], executor=pool)"
    command = [sys.executable, "-c", call, str(tmp_path / "there"), *map(str, adapters)]
    subprocess.run(command, check=True, env=ENVIRONMENT, cwd=SCRIPT.parent)
    gm.merge(adapters, out=tmp_path / "here")
    assert digest(tmp_path / "there") == digest(tmp_path / "here")

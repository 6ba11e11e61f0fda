"""The command line, through real processes: what it prints where, what it imports, how it fails."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import digest, random_factors, write_adapter
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from safetensors.torch import save_file
from terminal import ESCAPE, environment, run, run_in_terminal

import gam_merge as gm
from gam_cli._present import Name, console, printable, shorten

HEAVY = {"torch", "peft", "transformers", "numpy", "gam_merge"}

# What the console script runs, and then the names of heavy modules that this took.
LIGHT = f"""
import sys
from gam_cli import main
try:
    main()
finally:
    print(sorted({HEAVY} & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters ``a``, ``b`` and one with a long name, of six modules that agree in part; ``b`` lacks one."""
    folder = tmp_path_factory.mktemp("cli")
    generator = torch.Generator().manual_seed(0)
    names = [
        f"model.layers.{i}.self_attn.{name}" for i in range(3) for name in ("q_proj", "v_proj")
    ]
    common = {name: random_factors(generator, 32, 24, 4) for name in names}
    for adapter in ("a", "b", LONG):
        factors = {}
        for name, (b, a) in common.items():
            own_b, own_a = random_factors(generator, 32, 24, 4)
            factors[name] = ((b + own_b / 2).float(), (a + own_a / 2).float())
        if adapter == "b":
            del factors[names[-1]]
        write_adapter(folder / adapter, factors, lora_alpha=8)
    return folder


LONG = "checkpoints-of-a-run-with-a-name-that-nobody-would-type/checkpoint-20000/adapter"


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["--help"], 0, "Usage: gam-merge [merge]"),
        (["-h"], 0, "--allow-base-mismatch"),
        (["merge", "--help"], 0, "--weights"),
        (["--version"], 0, f"gam-merge {gm.__version__}"),
        ([], 2, "--weights"),
        (["a", "b"], 2, "--out"),
        (["-o", "out"], 2, "SOURCES"),
        (["a", "-o", "out", "--rank", "many"], 2, "--rank"),
        (["a", "-o", "out", "-p", "lam"], 2, "NAME=VALUE"),
        (["--nonsense", "a"], 2, "--nonsense"),
    ],
)
def test_help_version_and_usage_errors_come_without_torch(args, code, expected, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *args],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert expected in (done.stdout if code == 0 or not args else done.stderr)
    assert done.stderr.splitlines()[-1] == "[]"
    assert not list(tmp_path.iterdir())


def test_the_library_takes_neither_peft_nor_the_command_line():
    code = "import gam_merge, sys; print(sorted({'peft', 'transformers', 'typer', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


MERGE = """
import sys
import gam_merge as gm
gm.merge(["a", "b"], out=sys.argv[1])
print(sorted({"pydantic", "huggingface_hub", "scipy", "rich", "gam_merge._verbs"} & set(sys.modules)))
print(gm.batch.__name__, gm.recipe_schema.__name__, "search" in dir(gm), hasattr(gm, "nonsense"))
"""


def test_a_merge_imports_nothing_that_other_verbs_need(folder, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MERGE, tmp_path / "out"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "batch recipe_schema True False"]


def test_a_merge_in_a_pipe(folder, tmp_path):
    done = run(["a", "b", LONG, "-o", tmp_path / "out", "-v"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert ESCAPE not in done.stdout
    assert all(cell_len(line) <= 80 for line in lines[1:] if str(tmp_path) not in line)
    assert lines[0].startswith("auto: gam anchor=none (")
    assert lines[1] == "gam: 3 adapters, 6 modules -> rank 4, float32"
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    adapters = [line.split() for line in lines if re.match(r"\d  ", line)]
    assert [row[:2] for row in adapters[:2]] == [["0", "a"], ["1", "b"]]
    assert re.fullmatch(r"checkpo.*\.\.\..*checkpoint-20000/adapter", adapters[2][1])
    assert [row[2:5] for row in adapters] == [
        ["0.3333", str(modules), "4"] for modules in (6, 5, 6)
    ]
    assert [float(row[5]) for row in adapters] == pytest.approx(report["norms"], rel=1e-3)
    assert [float(row[6]) for row in adapters] == pytest.approx(
        [100 * x for x in report["survival"]], abs=0.051
    )
    assert f"merged norm is {100 * report['norm_ratio']:.1f} %" in done.stdout
    start = next(i for i, line in enumerate(lines) if line.startswith("module of model.layers "))
    modules = [line.split()[0] for line in lines[start + 2 : start + 8]]
    assert modules == [module["name"].removeprefix("model.layers.") for module in report["modules"]]
    assert lines[-1].startswith(f"wrote {tmp_path / 'out'}: ")


def test_a_file_in_a_pipe(folder, tmp_path):
    for name in "ab":
        tensors = {}
        for module in gm.load(folder / name).modules.values():
            stem = "lora_unet_" + module.name.replace(".", "_")
            b, a = module.factors(torch.float32)
            tensors |= {f"{stem}.lora_up.weight": b[0], f"{stem}.lora_down.weight": a[0]}
        save_file(tensors, tmp_path / f"{name}.safetensors")
    sources = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    done = run([*sources, "-o", "out.safetensors"], tmp_path)
    assert done.returncode == 0
    assert re.search(r"^wrote out\.safetensors: [\d.]+ kB in [\d.]+ s$", done.stdout, re.MULTILINE)
    assert "rank_pattern" not in done.stderr  # a matter of PEFT's format
    done = run(["verify", "out.safetensors"], tmp_path)
    assert done.returncode == 0


def test_explain_lists_what_lost_most(folder, tmp_path):
    done = run(["a", "b", "-o", tmp_path / "out", "--explain"], folder)
    lines = done.stdout.splitlines()
    assert all(cell_len(line) <= 80 for line in lines[1:] if str(tmp_path) not in line)
    report = json.loads((tmp_path / "out" / "merge_report.json").read_text())
    lost = {m["name"]: sum(m["inners"]) / sum(n**2 for n in m["norms"]) for m in report["modules"]}
    start = next(i for i, line in enumerate(lines) if line.startswith("module of model.layers "))
    shown = [f"model.layers.{line.split()[0]}" for line in lines[start + 2 : start + 8]]
    assert shown == sorted(lost, key=lost.__getitem__)


def test_json_is_alone_on_stdout(folder, tmp_path):
    options = [
        "-o",
        tmp_path / "out",
        "--json",
        "--method",
        "mean",
        "-w",
        "3",
        "-w",
        "1",
        "--anchor",
        "b",
    ]
    done = run([*options, "--rank", "2", "--dtype", "bf16", "a", "b"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "merge_report.json").read_text())
    assert (report["method"], report["weights"], report["anchor"]) == ("mean", [0.75, 0.25], 1)
    assert (report["rank"], report["dtype"]) == (2, "bfloat16")
    assert gm.load(tmp_path / "out").rank == 2


@pytest.mark.parametrize(
    ("typed", "setting"),
    [
        ("0-0:1,1-:0.5", [{"filter": "0-0", "value": 1}, {"filter": "1-", "value": 0.5}]),
        ("v_proj:0.25, *:1", [{"filter": "v_proj", "value": 0.25}, {"filter": "*", "value": 1}]),
        ("[0.2, 0.8]", [0.2, 0.8]),
        (".5", 0.5),
    ],
)
def test_weights_by_layer_are_those_of_recipes(folder, tmp_path, typed, setting):
    done = run(["a", "b", "-o", tmp_path / "out", "-w", typed, "-w", "1", "-m", "mean"], folder)
    assert (done.returncode, done.stderr) == (0, "")
    sources = [folder / "a", folder / "b"]
    gm.merge(sources, method="mean", weights=[setting, 1], out=tmp_path / "library")
    assert digest(tmp_path / "out") == digest(tmp_path / "library")
    gm.merge_recipe(tmp_path / "out" / "gam_merge_recipe.yaml", out=tmp_path / "again")
    assert digest(tmp_path / "again") == digest(tmp_path / "out")


@pytest.mark.parametrize("typed", ["half", "0.6,0.4", "0-9:", "[0.2", "mlp=1"])
def test_weights_that_are_none_are_a_usage_error(folder, typed):
    done = run(["a", "b", "-o", "out", "-w", typed, "-w", "1"], folder)
    assert done.returncode == 2
    assert "0-9:1,10-:0.5" in done.stderr


def test_quiet_prints_nothing_and_force_replaces(folder, tmp_path):
    gm.merge([folder / "a"], out=tmp_path / "out")
    done = run(["merge", "a", "b", "-o", tmp_path / "out", "-q", "--force"], folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(json.loads((tmp_path / "out" / "merge_report.json").read_text())["sources"]) == 2


def test_a_terminal_gets_a_progress_bar_and_colour(folder, tmp_path):
    code, sent = run_in_terminal(["a", "b", "-o", tmp_path / "out"], folder)
    assert code == 0
    assert "merging" in sent
    assert f"{ESCAPE}[1m" in sent  # bold
    before, _, after = sent.rpartition(f"{ESCAPE}[2K")  # the bar is erased, then comes the result
    assert "modules" in before
    assert "auto:" in after


def test_quiet_silences_downloads_too(hub, folder, tmp_path):
    """huggingface_hub draws bars and gives hints of its own."""
    hub.add("org/name", {path.name: path.read_bytes() for path in (folder / "a").iterdir()})
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    code, sent = run_in_terminal(
        ["org/name", "-o", tmp_path / "out", "-q"], folder, **settings, HF_HUB_DISABLE_XET="1"
    )
    assert (code, sent) == (0, "")
    assert gm.load(tmp_path / "out").rank == 4


def test_no_color(folder, tmp_path):
    code, sent = run_in_terminal(["nowhere", "-o", tmp_path / "out"], folder, NO_COLOR="1")
    assert code == 1
    assert "nowhere: no such file" in sent
    assert not re.search(r"\x1b\[[\d;]*3\dm", sent)


def test_dry_run_reads_no_tensor_and_writes_nothing(folder, tmp_path):
    """Of adapters full of NaN, which a merge refuses."""
    factors = {
        "w": (torch.full((8, 2), torch.nan), torch.ones(2, 6)),
        "v": (torch.ones(5, 2), torch.ones(2, 6)),
    }
    for name in ("x", "y"):
        write_adapter(tmp_path / name, factors)
    planned = run(["x", "y", "-o", "out", "--dry-run"], tmp_path)
    assert (planned.returncode, planned.stderr) == (0, "")
    first, second, *_ = planned.stdout.splitlines()
    assert first == "auto: 2 adapters, 2 modules -> rank 2, float32"
    assert second.startswith("auto will take gam without an anchor where ")
    assert "to write: 200 bytes of tensors" in planned.stdout
    assert re.search(
        r"^estimated [\d.]+ s and [\d.]+ (bytes|.B) of memory", planned.stdout, re.MULTILINE
    )
    refused = run(["x", "y", "-o", "out"], tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"error: x: module w has NaN or Inf in lora_B.*\n", refused.stderr)
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y"}


def test_names_from_files_are_harmless(tmp_path):
    hostile = f"w{ESCAPE}[31m[red]:boom:"
    shown = r"w\x1b[31m[red]:boom:"
    generator = torch.Generator().manual_seed(0)
    for name, rows in (("x", 8), ("[bold]y", 8), ("z", 9)):
        write_adapter(tmp_path / name, {hostile: random_factors(generator, rows, 6, 2)})
    done = run(["x", "[bold]y", "-o", "[red]out", "-v"], tmp_path)
    assert done.returncode == 0
    assert ESCAPE not in done.stdout
    assert shown in done.stdout
    assert "\n1  [bold]y " in done.stdout
    assert "wrote [red]out" in done.stdout
    failed = run(["x", "z", "-o", "out"], tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"error: module {shown} is (8, 6) in x and (9, 6) in z")
    assert failed.stderr.count("\n") == 1


def test_interrupt(tmp_path):
    """Ctrl-C once the output has been begun: exit code 130, one line, nothing left."""
    generator = torch.Generator().manual_seed(0)
    b, a = random_factors(generator, 512, 512, 16, torch.float32)
    write_adapter(tmp_path / "x", {f"layers.{i}.w": (b.clone(), a.clone()) for i in range(400)})
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gam_merge",
            "x",
            "x",
            "x",
            "-o",
            "out",
            "-m",
            "ties@delta",
        ],  # takes seconds
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a run in the background ignores it
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# The command as installed, interrupted where a module is imported by code that swallows exceptions, or at its end.
INTERRUPTED_AT = """
import atexit, os, signal, sys
from gam_cli import main

class Finder:
    def find_spec(self, name, path, target=None):
        if name == moment:
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                pass

moment = sys.argv.pop(1)
sys.meta_path.insert(0, Finder())
if moment == "end":
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
main()
"""


@pytest.mark.parametrize(
    ("moment", "before", "expected"),
    [
        ("typer", signal.SIG_DFL, (130, "interrupted\n")),
        ("torch", signal.SIG_DFL, (130, "interrupted\n")),
        ("gam_merge._run.engine", signal.SIG_DFL, (130, "interrupted\n")),
        (
            "torch",
            signal.SIG_IGN,
            (0, ""),
        ),  # as the shell of a script starts what runs in the background
        ("end", signal.SIG_DFL, (0, "")),
    ],
)
def test_interrupt_while_nothing_is_written(
    moment: str, before: signal.Handlers, expected: tuple[int, str], tmp_path: Path
) -> None:
    write_adapter(
        tmp_path / "x",
        {"w": random_factors(torch.Generator().manual_seed(0), 4, 4, 2, torch.float32)},
    )
    command = [sys.executable, "-c", INTERRUPTED_AT, moment, "x", "-o", "out", "-q"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, before),
    )
    assert (done.returncode, done.stderr) == expected
    assert (tmp_path / "out").exists() == (done.returncode == 0)


@given(st.text())
def test_printable_is_one_line_without_controls(text):
    assert all(c.isprintable() for c in printable(text))


@given(st.text(), st.integers(3, 40))
def test_shorten_keeps_the_width_and_the_ends(text, width):
    text = printable(text)
    short = shorten(text, width)
    assert cell_len(short) <= width
    assert short == text or "..." in short


def test_a_name_is_inert():
    with (terminal := console()).capture() as capture:
        terminal.print(Name("[red]:boom:"))
    assert capture.get().strip() == "[red]:boom:"

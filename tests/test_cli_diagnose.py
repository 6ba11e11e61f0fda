"""``inspect`` and ``compare`` on the command line: readable at 80 columns, in pipes, without colour; JSON; failures."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
from helpers import random_factors, write_adapter
from rich.cells import cell_len
from terminal import ESCAPE, environment, run, run_in_terminal

import gam_merge as gm

HOSTILE = "evil\x1b[31m[bold]name"
LONG = "checkpoints-of-a-run-with-a-name-that-nobody-would-type/checkpoint-20000/adapter"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of 60 layers of two types; a third that is damaged, odd and badly named."""
    folder = tmp_path_factory.mktemp("diagnose")
    generator = torch.Generator().manual_seed(0)
    names = [
        f"model.layers.{i}.self_attn.{name}" for i in range(60) for name in ("q_proj", "v_proj")
    ]
    for adapter in ("a", LONG):
        factors = {
            name: tuple(x.float() for x in random_factors(generator, 24, 16, 3)) for name in names
        }
        write_adapter(folder / adapter, factors, lora_alpha=6)
    odd = {
        name: tuple(x.float() for x in random_factors(generator, 24, 16, 3))
        for name in (HOSTILE, "w.0.b", "w.1.b")
    }
    odd["w.0.b"][0].zero_()
    write_adapter(folder / "odd", odd, peft_type="IA3", base_model_name_or_path=f"{HOSTILE}\n")
    return folder


@cache
def printed(folder: Path, *args: str) -> str:
    """What a run prints that succeeds without a word on stderr."""
    done = run(args, folder)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def readable(text: str) -> None:
    """No line but a warning is wider than 80 columns, no character moves the cursor or changes colour."""
    assert all(
        cell_len(line) <= 80 for line in text.splitlines() if not line.startswith("warning: ")
    )
    assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("args", [("inspect", "a", "--by", "layer"), ("compare", "a", LONG)])
def test_a_pipe(folder, args):
    readable(printed(folder, *args))


def test_compare_says_what_it_measured(folder):
    found = gm.compare([folder / "a", folder / LONG])
    text = printed(folder, "compare", "a", LONG)
    words = " ".join(text.split())
    for part in found.verdict.split(". "):
        assert part.split(":")[0] in words
    assert f"--method {found.recommendation.method}" in words
    assert f"{found.total.overlap_u:.3f}" in words
    assert "60 layers" in words
    assert "each bar is the mean of 2 layers" in words
    assert text.count("v_proj") == 3  # in the table and in both strips


def test_inspect_says_what_it_found(folder):
    text = printed(folder, "inspect", "a", "--by", "layer")
    assert "120 modules, rank 3, scale 2.000, float32" in text
    assert "layers.59" in text
    assert "..." not in text  # nothing had to be shortened


def test_inspect_tells_what_a_merge_refuses(folder):
    text = printed(folder, "inspect", "odd")
    readable(text)
    assert "IA3" in text
    assert "1 of 3 modules: zero" in text
    assert text.count("evil\\x1b[31m[bold]name") >= 2  # the base model and a type


@pytest.mark.parametrize("args", [["inspect", "a"], ["compare", "a", LONG]])
def test_json(folder, args):
    data = json.loads(
        printed(folder, *args, "--json"),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    expected = (
        gm.inspect(folder / "a")
        if args[0] == "inspect"
        else gm.compare([folder / "a", folder / LONG])
    )
    assert data["types"] == json.loads(json.dumps(expected.to_dict()["types"]))


def test_a_terminal_gets_colour_unless_it_has_said_no(folder):
    args = ["compare", "a", LONG]
    code, sent = run_in_terminal(args, folder)
    assert code == 0
    assert f"{ESCAPE}[38;5;" in sent
    code, sent = run_in_terminal(args, folder, NO_COLOR="1")
    assert code == 0
    assert f"{ESCAPE}[38;5;" not in sent


def test_figures_and_reports(folder, tmp_path):
    """Written beside what is printed, named at its end; with --json stdout stays JSON."""
    html, svg = tmp_path / "report.html", tmp_path / "plot.svg"
    lines = printed(
        folder, "compare", "a", LONG, "--html", str(html), "--plot", str(svg)
    ).splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == [f"wrote {svg}", f"wrote {html}"]
    assert svg.read_text().startswith("<?xml")
    html.unlink()
    json.loads(printed(folder, "inspect", "a", "--json", "--html", str(html)))
    assert "</html>" in html.read_text()


def test_ascii_terminals_get_ascii_strips(folder):
    done = run(["inspect", "a"], folder, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "\\u" not in done.stdout


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (["compare", "a"], 1, "compare needs two adapters"),
        (["inspect", "nowhere"], 1, "no such file or directory"),
        (["inspect", "a", "--plot", "plot.jpeg"], 1, "png, svg, pdf"),
        (["inspect", "a", "--by", "colour"], 2, "--by"),
        (["inspect", "a", "b"], 2, "b"),
    ],
)
def test_failures(folder, args, code, expected):
    done = run(args, folder)
    assert (done.returncode, done.stdout) == (code, "")
    assert expected in done.stderr
    assert code == 2 or len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["inspect", "compare"])
def test_help_comes_without_torch(verb, tmp_path):
    code = (
        f"import sys; sys.argv[1:] = [{verb!r}, '--help']\nfrom gam_cli import main\ntry: main()\n"
    )
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert "--by" in done.stdout

"""What shells complete, what help shows, and what is printed where the code is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from methods_page import CATALOGUE, catalogue
from terminal import environment, run

import gam_merge as gm

# The console script, and a script in which merge has a bug.
SCRIPT = "import sys; from gam_cli import main; main()"
BUG = """
import sys
import gam_merge as gm
from gam_cli import main
def merge(*sources, **options): raise TypeError("odd \\x1b[31mname")
gm.merge = merge
main()
"""
HEAVY = {"torch", "numpy", "gam_merge"}


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a command gam-merge, which says what heavy modules it took."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "gam-merge"
    script.write_text(
        f"#!{sys.executable}\n"
        "import atexit, sys\n"
        f"atexit.register(lambda: print('HEAVY', sorted({HEAVY} & set(sys.modules)), file=sys.stderr))\n"
        f"{SCRIPT}\n"
    )
    script.chmod(0o755)
    return folder


def complete(bin: Path, *words: str) -> list[str]:
    """What bash offers for the last of these words, by the script that the command installs."""
    program = """
        eval "$(_GAM_MERGE_COMPLETE=source_bash gam-merge)"
        function=$(complete -p gam-merge | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
        COMP_WORDS=("$@")
        COMP_CWORD=$(($# - 1))
        "$function" gam-merge
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", program, "bash", "gam-merge", *words],
        env=environment(PATH=f"{bin}{os.pathsep}{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    heavy = [line for line in done.stderr.splitlines() if line.startswith("HEAVY")]
    assert set(heavy) == {"HEAVY []"}, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["co"], ["compare", "convert"]),
        (["-m", "ti"], ["ties"]),
        (["merge", "a", "b", "-m", "iso_c"], ["iso_c", "iso_cts", "iso_cts_r"]),
        (["a", "--method", "pic"], ["pico+"]),
        (["a", "-m", "pico+tie"], ["pico+ties"]),
        (["a", "-m", "sum+s"], ["sum+svc", "sum+subspace_boost"]),
        (["methods", "geom"], ["geometric_median"]),
        (["a", "-m", "ties", "-p", "dens"], ["density=0.2"]),
        (["a", "-m", "ties", "-p", "resc"], ["rescale=none", "rescale=norm"]),
        (["a", "-p", "density"], []),
        (["a", "-m", "pico+ties", "-p", "pico."], None),
        (["a", "-m", "nonsense", "-p", "x"], []),
    ],
)
def test_bash_completes(bin: Path, words: list[str], expected: list[str] | None) -> None:
    offered = complete(bin, *words)
    if expected is None:
        names = [param.name for param in gm.get_method("pico+ties").params if "." in param.name]
        assert {text.partition("=")[0] for text in offered} == set(names)
    else:
        assert sorted(offered) == sorted(expected)


def test_spaces_are_completed_where_the_shell_keeps_the_word(bin: Path) -> None:
    """zsh and fish do; bash takes @ for the end of a word."""
    done = subprocess.run(
        [bin / "gam-merge"],
        env=environment(
            _GAM_MERGE_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="gam-merge -m ties@kn"
        ),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert '"ties@knots"' in done.stdout
    assert "HEAVY []" in done.stderr


def test_the_list_is_that_of_the_methods() -> None:
    assert CATALOGUE.read_text("utf-8") == catalogue(), "run: python docs/methods_page.py"


def test_every_completed_value_is_allowed() -> None:
    from gam_cli._completion import _params

    for name in ("ties", "gam", "pico+ties+svc", "ties@knots+isotropize", "dare@delta"):
        method = gm.get_method(name)
        for param, entry in _params(name):
            for value in entry["values"]:
                if value:
                    method.validate({param: value})


def test_a_bug_is_one_line_and_its_traceback_is_asked_for(tmp_path: Path) -> None:
    def report(**env: str) -> list[str]:
        command = [sys.executable, "-c", BUG, "a", "-o", "out"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(**env), capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.splitlines()

    bug = r"error: this is a bug: TypeError: odd \x1b[31mname"
    hint = "; GAM_MERGE_DEBUG=1 prints the traceback for a report"
    assert report() == [bug + hint]
    assert report(GAM_MERGE_DEBUG="0") == [bug + hint]
    shown = report(GAM_MERGE_DEBUG="1")
    assert shown[-1] == bug
    assert "Traceback" in shown[0]
    assert "\x1b[31m" not in "".join(shown)


def test_a_known_error_has_a_traceback_too(tmp_path: Path) -> None:
    quiet = run(["absent.safetensors", "-o", "out"], tmp_path)
    loud = run(["absent.safetensors", "-o", "out"], tmp_path, GAM_MERGE_DEBUG="1")
    assert (quiet.returncode, loud.returncode) == (1, 1)
    assert quiet.stderr.count("\n") == 1
    assert "Traceback" in loud.stderr
    assert loud.stderr.endswith(quiet.stderr)


def test_a_closed_pipe_is_not_a_bug(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gam_merge help methods | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "methods\n"
    assert "bug" not in done.stderr


def test_the_manual_of_methods_has_every_card(tmp_path: Path) -> None:
    done = run(["help", "methods"], tmp_path)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    for method in gm.methods():
        assert f"{method.name}: " in text
        for param in method.params:
            assert f" {param.name} " in text
        assert " ".join(method.rule.use.split()) in text


@pytest.mark.parametrize("verb", ["merge", "inspect", "help"])
def test_help_of_a_verb_is_its_help(bin: Path, verb: str) -> None:
    shown = []
    for args in (["help", verb], [verb, "--help"]):
        done = subprocess.run(
            [bin / "gam-merge", *args], env=environment(), capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "HEAVY []\n")
        shown.append(done.stdout)
    assert shown[0] == shown[1]


def test_help_of_no_verb_is_a_usage_error(bin: Path, tmp_path: Path) -> None:
    done = run(["help", "nonsense"], tmp_path)
    assert done.returncode == 2
    assert "'nonsense'" in done.stderr

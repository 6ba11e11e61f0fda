"""Code that uses gam-merge type-checks against its annotations, as an installed package."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CONSUMER = """\
from pathlib import Path

import gam_merge as gm
from gam_merge.rules import Coefficients


def merge_all(folders: list[Path]) -> float:
    result = gm.merge([str(folder) for folder in folders], method="mean", rank=8)
    ranks: dict[str, int] = {name: module.rank for name, module in result.adapter.modules.items()}
    norm_ratio: float = result.report.norm_ratio
    saved: Path = result.save("merged")
    return norm_ratio * len(ranks) * len(saved.parts) * len(Coefficients._fields)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter in whose environment this checkout is installed, with its dependencies."""
    home = tmp_path_factory.mktemp("consumer") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", home], check=True)
    site = sysconfig.get_path("purelib", vars={"base": str(home), "platbase": str(home)})
    paths = [ROOT, ROOT / "kernels", ROOT / "cli", sysconfig.get_path("purelib")]
    Path(site, "checkout.pth").write_text("\n".join(map(str, paths)))
    return home / "bin" / "python"


def mypy(python: Path, source: str) -> subprocess.CompletedProcess[str]:
    file = python.parents[2] / "consumer.py"
    file.write_text(source)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python, file.name]
    return subprocess.run(command, cwd=file.parent, capture_output=True, text=True)


def test_a_consumer_type_checks(python: Path) -> None:
    done = mypy(python, CONSUMER)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("rank=8", 'rank="8"', "arg-type"),
        ("rank=8", "ranks=8", "call-arg"),
        ("result.report.norm_ratio", "result.report.ratio", "attr-defined"),
        ("saved: Path", "saved: str", "assignment"),
    ],
)
def test_a_mistake_is_found(python: Path, right: str, wrong: str, error: str) -> None:
    assert right in CONSUMER
    done = mypy(python, CONSUMER.replace(right, wrong))
    assert done.returncode == 1
    assert f"[{error}]" in done.stdout

"""The files around the code: workflows call the scripts of .ci, versions agree, CONTRIBUTING.md is true."""

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import random_factors, write_adapter
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
WORKFLOWS = {path.name: path for path in sorted((ROOT / ".github/workflows").glob("*.yml"))}
PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")

# Steps that are not a script of the repository: the forge's own command, and a linter that needs its binary.
OTHER_STEPS = ("gh release create ", "pipx run pre-commit run --all-files --hook-stage manual ")


def jobs(name: str) -> dict[str, Any]:
    return yaml.safe_load(WORKFLOWS[name].read_text("utf-8"))["jobs"]


def steps(name: str) -> Iterator[dict[str, Any]]:
    for job in jobs(name).values():
        yield from job["steps"]


def test_the_workflows_are_these() -> None:
    assert set(WORKFLOWS) == {"tests.yml", "docs.yml", "nightly.yml", "release.yml"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_call_the_scripts(name: str) -> None:
    commands = [step["run"] for step in steps(name) if "run" in step]
    assert commands
    for command in commands:
        if not command.startswith(OTHER_STEPS):
            script = ROOT / command.split()[0]
            assert script.parent == ROOT / ".ci", command
            assert os.access(script, os.X_OK), command


@pytest.mark.parametrize("name", WORKFLOWS)
def test_actions_are_pinned_to_a_commit(name: str) -> None:
    """A tag can be moved, a commit cannot."""
    for step in steps(name):
        if "uses" in step:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", step["uses"])


def test_all_supported_pythons_are_tested() -> None:
    tested = jobs("tests.yml")["tests"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    listed = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if prefix in line]
    assert tested == listed
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_only_a_release_may_write() -> None:
    for name in WORKFLOWS:
        workflow = yaml.safe_load(WORKFLOWS[name].read_text("utf-8"))
        granted = [workflow["permissions"]]
        granted += [job.get("permissions", {}) for job in workflow["jobs"].values()]
        writes = any("write" in permissions.values() for permissions in granted)
        assert writes == (name == "release.yml")
        assert "secrets." not in WORKFLOWS[name].read_text("utf-8")


def release_notes(tag: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / ".ci/release-notes", tag]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_version_has_its_notes() -> None:
    done = release_notes(f"v{PROJECT['version']}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("### ")
    assert "\n## " not in done.stdout


def test_a_tag_of_another_version_is_an_error() -> None:
    done = release_notes("v0.0.1")
    assert done.returncode == 1
    assert done.stderr == f"the tag must be v{PROJECT['version']}, got v0.0.1\n"


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert citation["version"] == PROJECT["version"]
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in changes
    assert citation["license"] == PROJECT["license"]
    assert citation["references"][0]["url"] == "https://arxiv.org/abs/2606.00357"


def test_what_contributing_names_exists() -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", PAGE)
    paths = re.findall(r"`((?:\.ci|tests|benchmarks|gam_merge)/[\w./-]+)`", PAGE)
    assert len(links) > 3
    assert len(paths) > 6
    for path in (*links, *paths):
        assert (ROOT / path).exists(), path


def blocks(language: str) -> list[str]:
    """The fenced blocks of CONTRIBUTING.md in a language."""
    tokens = MarkdownIt().parse(PAGE)
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def test_the_method_of_contributing_merges(tmp_path: Path) -> None:
    """As the package of its own that the page describes, one module of one adapter being zero."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "my_package.py").write_text("\n".join(blocks("python")))
    (entries,) = blocks("toml")
    metadata = site / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    section = entries.replace('[project.entry-points."gam_merge.methods"]', "[gam_merge.methods]")
    (metadata / "entry_points.txt").write_text(section.replace('"', ""))

    import torch

    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        factors = {f"layers.{i}.q_proj": random_factors(generator, 12, 10, 2) for i in range(2)}
        if name == "b":
            b, a = factors["layers.1.q_proj"]
            factors["layers.1.q_proj"] = (0 * b, a)
        write_adapter(tmp_path / name, factors)
    program = textwrap.dedent("""
        import gam_merge as gm
        result = gm.merge(["a", "b"], method="quieter", params={"power": 1.0})
        loud, quiet = gm.load("a"), gm.load("b")
        name = sorted(result.adapter.modules)[0]
        pair = [each.modules[name].delta() for each in (loud, quiet)]
        mean = sum(delta.norm() for delta in pair) / 2
        expected = sum(mean * delta / delta.norm() for delta in pair) / 2
        merged = result.adapter.modules[name].delta()
        assert (merged - expected).norm() < 1e-6 * expected.norm()
        assert all(module.delta().isfinite().all() for module in result.adapter.modules.values())
    """)
    path = os.pathsep.join((str(site), *sys.path))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

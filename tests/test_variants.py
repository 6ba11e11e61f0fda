"""Each kind of adapter comes back whole: merged with itself unchanged, with another as the mean of what PEFT fuses."""

from pathlib import Path

import pytest
from helpers import relative
from variants import VARIANTS, base, dense_mean, forward, load, model, save

import gam_merge as gm


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """Two adapters of each variant, made when first asked for."""
    folder = tmp_path_factory.mktemp("variants")

    class Saved(dict[tuple[str, int], Path]):
        def __missing__(self, key: tuple[str, int]) -> Path:
            kind, config = VARIANTS[key[0]]
            self[key] = save(
                folder / f"{key[0]}-{key[1]}",
                kind,
                key[1],
                **{"init_lora_weights": False, **config},
            )
            return self[key]

    return Saved()


def base_of(name: str) -> str | None:
    """DoRA alone needs the weights of the base."""
    kind, config = VARIANTS[name]
    return str(base(kind)) if config.get("use_dora") else None


@pytest.mark.parametrize("name", VARIANTS)
def test_identity(name: str, saved: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    kind, _ = VARIANTS[name]
    before, expected = forward(model(kind)), forward(load(kind, saved[name, 0]))
    assert relative(before, expected) > 1e-3  # else the comparison proves nothing
    gm.merge([saved[name, 0]], base_model=base_of(name), out=tmp_path / "out")
    assert relative(forward(load(kind, tmp_path / "out")) - before, expected - before) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_mean_of_two(name: str, saved: dict[tuple[str, int], Path], tmp_path: Path) -> None:
    kind, _ = VARIANTS[name]
    paths, weights = [saved[name, 0], saved[name, 1]], [0.75, 0.25]
    before, expected = forward(model(kind)), forward(dense_mean(kind, paths, weights))
    assert relative(before, expected) > 1e-3
    gm.merge(
        paths,
        method="mean",
        weights=weights,
        rank=8,
        base_model=base_of(name),
        out=tmp_path / "out",
    )
    assert relative(forward(load(kind, tmp_path / "out")) - before, expected - before) < 1e-5

"""Adapters of any config, made by PEFT itself: their merge does to the weights what they do on average, or is refused
in one line."""

import copy
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from helpers import relative
from hypothesis import event, given, reject, settings
from hypothesis import strategies as st
from peft import PeftModel
from variants import base, fused, model, save

import gam_merge as gm
from gam_merge._common.errors import collecting

WEIGHTS = [0.75, 0.25]
# model -> what may be adapted, its parameters that may be, what may be saved whole
MODELS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "qwen2": (["q_proj", "k_proj", "v_proj", "embed_tokens"], [], ["lm_head", "norm"]),
    "gpt2": (["c_attn", "c_proj", "wpe"], [], ["ln_f"]),
    "mixtral": (
        ["q_proj", "v_proj", "lm_head"],
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
        ["norm"],
    ),
}
PATTERNS = st.dictionaries(
    st.sampled_from([r".*\.0\..*", "q_proj", "c_attn", "1.self.attn.q_proj"]), st.integers(1, 5)
)


@st.composite
def configs(draw: st.DrawFn, kind: str) -> dict[str, Any]:
    """What LoraConfig is given, half of it as it would be by default."""
    modules, parameters, whole = MODELS[kind]
    fields: dict[str, st.SearchStrategy[Any]] = {
        "r": st.integers(1, 5),
        "lora_alpha": st.integers(1, 8),
        "rank_pattern": PATTERNS,
        "alpha_pattern": PATTERNS,
        "use_rslora": st.booleans(),
        "use_dora": st.booleans(),
        "bias": st.sampled_from(["all", "lora_only"]),
        "modules_to_save": st.lists(st.sampled_from(whole), min_size=1, unique=True),
        "layers_to_transform": st.sampled_from([0, [1], [0, 1]]),
        "exclude_modules": st.sampled_from([r".*\.0\..*", ["lm_head"]]),
    }
    if kind != "mixtral":  # which has no biases, without which PEFT does not fuse these
        fields["lora_bias"] = st.booleans()
    if kind != "gpt2":  # whose head is its embedding
        fields["trainable_token_indices"] = st.sampled_from([[3, 7], [7]])
    if parameters:
        fields["target_parameters"] = st.lists(st.sampled_from(parameters), min_size=1, unique=True)
    chosen = {name: draw(value) for name, value in fields.items() if draw(st.integers(0, 2)) == 0}
    return {
        **chosen,
        "target_modules": draw(st.lists(st.sampled_from(modules), min_size=1, unique=True)),
    }


def made(path: Path, kind: str, seed: int, config: dict[str, Any]) -> Path:
    """The adapter, if PEFT makes one of these."""
    try:
        return save(path, kind, seed, **{"init_lora_weights": False, **config})
    except (
        ValueError,
        TypeError,
        NotImplementedError,
        AttributeError,
        KeyError,
        RuntimeError,
    ) as error:
        event(f"PEFT: {type(error).__name__}: {str(error)[:60]}")
        reject()


def check_loads(kind: str, path: Path) -> None:
    """PEFT finds all that it looks for."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        PeftModel.from_pretrained(copy.deepcopy(model(kind)).float(), path)
    assert not [str(w.message) for w in said if "adapter keys" in str(w.message)]


@settings(max_examples=30, phases=[__import__("hypothesis").Phase.generate])
@given(
    st.sampled_from(sorted(MODELS)).flatmap(
        lambda kind: st.tuples(st.just(kind), configs(kind), configs(kind))
    )
)
def test_the_mean_of_what_peft_makes(case: tuple[str, dict[str, Any], dict[str, Any]]) -> None:
    kind, *pair = case
    with TemporaryDirectory() as folder:
        paths = [made(Path(folder) / f"{i}", kind, i, config) for i, config in enumerate(pair)]
        out = Path(folder) / "out"
        problems: list[str] = []
        with collecting(problems):
            sources = [gm.load(path) for path in paths]
            gm.merge(
                sources, method="mean", weights=WEIGHTS, rank=16, base_model=base(kind), out=out
            )
        event(f"refused: {problems[0].replace(folder, '')[:100]}" if problems else "merged")
        if problems:
            assert problems[0].isprintable()
            assert not out.exists()
            return
        check_loads(kind, out)
        merged = gm.load(out)
        left_out = {
            name
            for source in sources
            for name, extra in source.extras.items()
            if extra.kind == "base_weight"
        }
        assert set(merged.modules) == {name for source in sources for name in source.modules}
        assert (
            set(merged.extras) >= {name for source in sources for name in source.extras} - left_out
        )
        result, *each = (fused(kind, path).state_dict() for path in (out, *paths))
        extras = [
            {name.replace(".token_adapter.trainable_tokens_delta", ".weight") for name in s.extras}
            for s in sources
        ]
        for name, value in result.items():
            if (
                len({name in held for held in extras}) == 1
            ):  # what one has alone is not averaged with the base's
                assert (
                    relative(value, WEIGHTS[0] * each[0][name] + WEIGHTS[1] * each[1][name]) < 1e-5
                ), name

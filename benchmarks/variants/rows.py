"""The kinds of adapters that are compared: pairs made by PEFT on the tiny models of the tests."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    VeraConfig,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from variants import VARIANTS, save_any

_PREFIX, _FILE = "base_model.model.", "adapter_model.safetensors"
_Q: dict[str, Any] = {"target_modules": ["q_proj"]}
_HEAD = {**_Q, "modules_to_save": ["lm_head"]}
_QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}


@dataclass(frozen=True)
class Row:
    """Two adapters of one kind of model.

    Attributes:
        name: in the table.
        kind: the model, by its name in the tests.
        configs: one per adapter.
        rank: of the merge, large enough for it to be exact.
        rewrite: changes the files of the first adapter, as another trainer would have saved them.
        trained_head: the adapter that alone has lm_head in modules_to_save.
    """

    name: str
    kind: str
    configs: Sequence[PeftConfig]
    rank: int = 8
    rewrite: Callable[[Path], None] | None = None
    trained_head: int | None = None

    @property
    def needs_base(self) -> bool:
        """Whether a merge reads base weights."""
        return any(getattr(config, "use_dora", False) for config in self.configs)

    def save(self, folder: Path) -> list[Path]:
        """Save the adapters, and return their directories."""
        paths: list[Path] = []
        for i, config in enumerate(self.configs):
            paths.append(save_any(folder / f"{i}", self.kind, i, config))
        return paths


def _lora(
    name: str,
    kind: str,
    first: Mapping[str, Any],
    second: Mapping[str, Any] | None = None,
    **row: Any,
) -> Row:
    common = {"r": 4, "lora_alpha": 6, "init_lora_weights": False}
    fields = (first, first if second is None else second)
    return Row(name, kind, [LoraConfig(**{**common, **config}) for config in fields], **row)


def _variant(name: str, variant: str, **more: Any) -> Row:
    """Return a row of the adapters that the tests have."""
    kind, config = VARIANTS[variant]
    return _lora(name, kind, {**config, **more})


def _other(name: str, config: Callable[..., PeftConfig], **settings: Any) -> Row:
    """Return a row of another kind than LoRA."""
    return Row(name, "llama", [config(**_QV, **settings) for _ in range(2)])


def _rename(change: Callable[[str], str]) -> Callable[[Path], None]:
    def rewrite(path: Path) -> None:
        _write(path, {change(key): value for key, value in load_file(path / _FILE).items()})

    return rewrite


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file(dict(tensors), path / _FILE, {"format": "pt"})


def _as_pickle(path: Path) -> None:
    torch.save(load_file(path / _FILE), path / "adapter_model.bin")
    (path / _FILE).unlink()


ROWS: tuple[Row, ...] = (
    _variant("Linear", "linear"),
    _lora(
        "Linear, unlike ranks and alphas",
        "llama",
        {**_QV, "r": 5},
        {**_QV, "r": 3, "lora_alpha": 8},
    ),
    _lora(
        "target_modules a list in one, a regex in the other",
        "llama",
        _Q,
        {"target_modules": r".*\.0\..*q_proj"},
    ),
    _lora("layers_to_transform, unlike layers", "llama", {**_Q, "layers_to_transform": [0]}, _Q),
    _variant("Conv1D of GPT-2 (fan_in_fan_out)", "conv1d_of_gpt2"),
    _lora("Conv1d", "conv", {"target_modules": ["line"], "r": 2}, rank=4),
    _lora("Conv2d", "conv", {"target_modules": ["plain"], "r": 2}, rank=4),
    _lora("Conv2d, 1 x 1", "conv", {"target_modules": ["pointwise"], "r": 2}, rank=4),
    _lora("Conv2d, grouped", "conv", {"target_modules": ["grouped"]}),
    _lora("Conv3d", "conv", {"target_modules": ["space"], "r": 2}, rank=4),
    _lora("MultiheadAttention", "conv", {"target_modules": ["attention"], "r": 2}, rank=4),
    _variant("Embedding", "embedding"),
    _variant("lm_head", "lm_head"),
    _variant("Embedding, tied to the head", "tied_embedding"),
    _variant("lm_head, tied to the embedding", "tied_lm_head"),
    _variant("experts of a MoE (target_parameters)", "experts"),
    _variant("T5", "t5"),
    _variant("ViT", "vit", modules_to_save=None),
    _variant("rsLoRA", "rslora"),
    _lora("rsLoRA in the second alone", "llama", _QV, {**_QV, "use_rslora": True}),
    _variant("rank_pattern", "rank_pattern"),
    _variant("alpha_pattern", "alpha_pattern"),
    _variant("lora_bias", "lora_bias"),
    _variant("bias = all", "bias_all"),
    _variant("modules_to_save", "modules_to_save"),
    _lora("modules_to_save in the first alone", "llama", _HEAD, _Q, trained_head=0),
    _lora("modules_to_save in the second alone", "llama", _Q, _HEAD, trained_head=1),
    _variant("trainable tokens", "trainable_tokens"),
    _variant("DoRA", "dora"),
    _lora("DoRA and plain LoRA", "llama", {**_QV, "use_dora": True}, _QV),
    _variant("DoRA on embedding and lm_head", "dora_embeddings"),
    _variant("DoRA on Conv1D of GPT-2", "dora_conv1d_of_gpt2"),
    _lora(
        "DoRA on Conv2d", "conv", {"target_modules": ["plain"], "r": 2, "use_dora": True}, rank=4
    ),
    _variant("init gaussian", "init_gaussian"),
    _variant("init orthogonal", "init_orthogonal"),
    _lora("init PiSSA", "llama", {**_Q, "init_lora_weights": "pissa"}),
    _lora("init OLoRA", "llama", {**_Q, "init_lora_weights": "olora"}),
    _other("AdaLoRA", AdaLoraConfig, total_step=10),
    _other("LoHa", LoHaConfig, init_weights=False),
    _other("LoKr", LoKrConfig, init_weights=False),
    _other("IA3", IA3Config, feedforward_modules=[]),
    _other("VeRA", VeraConfig),
    _other("OFT", OFTConfig, r=2, oft_block_size=0),
    _lora("adapter_model.bin", "llama", _QV, rewrite=_as_pickle),
    _lora(
        "keys without base_model.model.",
        "llama",
        _QV,
        rewrite=_rename(lambda key: key.removeprefix(_PREFIX)),
    ),
    _lora(
        "keys with .default.",
        "llama",
        _QV,
        rewrite=_rename(lambda key: key.replace(".weight", ".default.weight")),
    ),
)

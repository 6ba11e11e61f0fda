"""Dotted files of image and video models: diffusers, ComfyUI, ai-toolkit, SimpleTuner, musubi.

One ``pytorch_lora_weights.safetensors`` in a directory, or any ``NAME.safetensors``. Keys are
``<component>.<path of the module>.<role>``, and the component may be missing. Each role of a
factor has several spellings; a module is written as it was spelled. The name of a module is all
that stands before the role.

The scale is that of the ``lora_adapter_metadata`` of the file, fields of PEFT's LoraConfig under
``<component>.``, or under nothing where the file is of one model alone; else alpha / r of a tensor
``alpha`` of the module; else 1. It is written as 1, with neither of them, since some readers do not
look at either.

The tensors of LyCORIS may lie there, too; they are read, and written, as plain LoRA.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from gam_merge._common.errors import GamMergeError, collecting
from gam_merge._common.tensors import LazyTensor, MemoryTensor, dtype_name
from gam_merge._read import lycoris, peft_config
from gam_merge._read.adapter import Adapter, LoraModule
from gam_merge._read.format import Contents, Format, check_holds
from gam_merge._read.layout import ConvLayout, Layout
from gam_merge._read.pairs import (
    Stem,
    check_alpha_not_given,
    lora_module,
    lycoris_notes,
    not_of_the_grammar,
    refused,
    with_given_alpha,
)

METADATA_KEY = "lora_adapter_metadata"
_PEFT_STYLE = ".lora_A.weight"
_SPELLINGS = {  # how the key of A ends -> that of B; longer ends first, since shorter ones fit too
    ".lora_linear_layer.down.weight": ".lora_linear_layer.up.weight",
    ".lora_A.default.weight": ".lora_B.default.weight",
    ".lora_down.weight": ".lora_up.weight",
    ".lora.down.weight": ".lora.up.weight",
    "_lora.down.weight": "_lora.up.weight",
    _PEFT_STYLE: ".lora_B.weight",
    ".lora_A": ".lora_B",
}
_ALPHA = ".alpha"

# The parts of a pipeline, and what the paths of its modules begin with where the part is not named.
COMPONENTS = (
    "unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3",
    "text_encoders", "connectors", "diffusion_model",
)  # fmt: skip
_BLOCKS = (
    "down_blocks", "mid_block", "up_blocks", "transformer_blocks", "single_transformer_blocks",
    "double_blocks", "single_blocks", "joint_blocks", "blocks",
)  # fmt: skip
# Modules of language models whose names begin like those of a pipeline's transformer.
_LANGUAGE_MODEL = re.compile(
    r"transformer\.(h|wte|wpe|word_embeddings|encoder|output_layer|lm_head)\b.*"
    r"|transformer\.blocks\.\d+\.(attn\.Wqkv|attn\.out_proj|ffn|norm_attn_norm)\b.*"
)


class Diffusers(Format):
    """The format of diffusers, whose dotted keys ComfyUI and most new trainers share."""

    name = "diffusers"
    weights_names = ("pytorch_lora_weights.safetensors",)
    mixed_ranks = True

    def recognizes(self, contents: Contents) -> bool:
        if METADATA_KEY in contents.metadata:
            return True
        return any(_is_of_a_pipeline(key) for key in contents.tensors)

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        where = contents.where
        stems: dict[str, Stem] = {}
        alphas: dict[str, tuple[str, LazyTensor]] = {}  # by module: the key and the tensor
        for key, tensor in contents.tensors.items():
            with collecting(problems):
                if key.endswith(_ALPHA):
                    alphas[key.removesuffix(_ALPHA)] = key, tensor
                else:
                    _sort_in(where, key, tensor, stems)
        with collecting(problems):
            _add_alphas(where, alphas, stems)
        scales = _Scales(where, contents.metadata)
        modules: dict[str, LoraModule] = {}
        for name, stem in sorted(stems.items()):
            with collecting(problems):
                module = lora_module(where, stem)
                scale = scales.of(module, has_alpha="alpha" in stem.parts)
                modules[name] = module if scale is None else replace(module, scale=scale)
        with collecting(problems):
            if scales or alphas:
                check_alpha_not_given(contents, METADATA_KEY if scales else "a tensor per module")
            else:
                modules = with_given_alpha(contents, stems, modules)
            if not modules:
                raise GamMergeError(f"{where}: holds no LoRA factors")
        return Adapter(
            contents.source,
            modules,
            contents.base_model,
            notes=lycoris_notes(stems, modules),
            given=contents.given(),
            format=self.name,
        )

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        check_holds(self, adapter, (Layout, ConvLayout))
        return replace(adapter, format=self.name, config={})

    def module_tensors(self, module: LoraModule) -> dict[str, LazyTensor]:
        spelling = module.spelling if module.spelling in _SPELLINGS else _PEFT_STYLE
        tensors = {
            f"{module.name}{spelling}": module.a,
            f"{module.name}{_SPELLINGS[spelling]}": module.b,
        }
        if module.scale != 1.0:
            alpha = torch.tensor(module.scale * module.rank, dtype=torch.float32)
            tensors[f"{module.name}{_ALPHA}"] = MemoryTensor(alpha)
        return tensors


def component_of(name: str) -> str:
    """Return the part of the pipeline that a module's name begins with; nothing if it is bare."""
    first = name.partition(".")[0]
    of_a_pipeline = first in COMPONENTS and not _LANGUAGE_MODEL.fullmatch(name)
    return first if of_a_pipeline else ""


def _is_of_a_pipeline(key: str) -> bool:
    """Tell whether a key belongs to an image model's file, and to no language model's."""
    ends = (*_SPELLINGS, *_SPELLINGS.values())
    ends += tuple(f".{end}" for end in (*lycoris.ROLES, *lycoris.REFUSED))
    if not key.endswith(ends) or "." not in key.removesuffix(".weight").rpartition(".")[0]:
        return False
    if key.startswith(tuple(f"{name}." for name in (*COMPONENTS, *_BLOCKS))):
        return not _LANGUAGE_MODEL.fullmatch(key)
    return "lora_A" not in key and "lora_B" not in key  # spellings that PEFT does not have


def _sort_in(where: str, key: str, tensor: LazyTensor, stems: dict[str, Stem]) -> None:
    """Put a factor where its key says. Raises GamMergeError for a key of another kind."""
    for down, up in _SPELLINGS.items():
        for role, end in (("down", down), ("up", up)):
            name = key.removesuffix(end)
            if name != key and "." in name:
                stem = stems.setdefault(name, Stem(name, down))
                stem.add(where, key, role, tensor)
                return
    for end, role in lycoris.ROLES.items():
        name = key.removesuffix(f".{end}")
        if name != key:
            stems.setdefault(name, Stem(name)).add(where, key, role, tensor)
            return
    for role in lycoris.REFUSED:
        name = key.removesuffix(f".{role}")
        if name != key:
            raise refused(where, name, role)
    if key.endswith(("lora_magnitude_vector", "lora_magnitude_vector.weight")):
        raise GamMergeError(
            f"{where}: {key} makes its module DoRA, which is supported only in PEFT's format"
        )
    raise not_of_the_grammar(where, key, stems)


def _add_alphas(
    where: str, alphas: Mapping[str, tuple[str, LazyTensor]], stems: Mapping[str, Stem]
) -> None:
    for name, (key, tensor) in alphas.items():
        stem = stems.get(name.removesuffix("_lora").removesuffix(".lora"))
        stem = stems.get(name, stem)
        if stem is None:
            raise GamMergeError(f"{where}: {key} belongs to no module of the file")
        peft_style = stem.spelling.startswith(".lora_A")
        if peft_style and not tensor.dtype.is_floating_point:
            raise GamMergeError(
                f"{where}: {key} is stored as {dtype_name(tensor.dtype)}, which diffusers does "
                "not read; store it as float32"
            )
        stem.add(where, key, "alpha", tensor)


class _Scales:
    """The scales that the metadata of a file give its modules. Empty if there are none."""

    def __init__(self, where: str, metadata: Mapping[str, str]) -> None:
        self._where = where
        self._numbers: dict[str, peft_config.RanksAndScales] = {}  # by component; "" of bare names
        configs: dict[str, dict[str, Any]] = {}
        for name, value in _adapter_metadata(where, metadata).items():
            component, _, field = name.rpartition(".")
            configs.setdefault(component, {})[field] = value
        for component, config in configs.items():
            place = f"{where}: {METADATA_KEY}{f' of {component}' if component else ''}"
            for check in peft_config.CHECKS:
                check(place, config)
            self._numbers[component] = peft_config.RanksAndScales(place, config)

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def of(self, module: LoraModule, *, has_alpha: bool) -> float | None:
        """Return the scale of a module; None if the metadata give none.

        Raises GamMergeError if its component is missing there, or there is an alpha, too.
        """
        if not self._numbers:
            return None
        if has_alpha:
            raise GamMergeError(
                f"{self._where}: module {module.name} has an alpha, and the file has "
                f"{METADATA_KEY}, too; readers take one of them"
            )
        component, _, path = module.name.partition(".")
        numbers = self._numbers.get(component)
        if numbers is None and not component_of(module.name):
            path, numbers = module.name, self._numbers.get("")
        if numbers is None:
            raise GamMergeError(
                f"{self._where}: {METADATA_KEY} does not describe {component}, of which the file "
                f"has module {module.name}"
            )
        rank = numbers.rank(path)
        if rank is not None and rank != module.rank:
            raise GamMergeError(
                f"{self._where}: module {module.name} has rank {module.rank} by its tensors and "
                f"{rank} by {METADATA_KEY}"
            )
        return numbers.scale(path, module.rank)


def _adapter_metadata(where: str, metadata: Mapping[str, str]) -> Mapping[str, Any]:
    text = metadata.get(METADATA_KEY)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GamMergeError(f"{where}: {METADATA_KEY} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise GamMergeError(f"{where}: {METADATA_KEY} must be a JSON object, got {text[:40]!r}")
    return content

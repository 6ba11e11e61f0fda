"""kohya's files: what sd-scripts, musubi-tuner and most trainers of image models write.

One ``NAME.safetensors`` without a config. Keys are ``<stem>.<role>``, and the stem has no dot: a
prefix for the part of the pipeline (``lora_unet_``, ``lora_te1_``) and the path of the module with
``_`` for ``.``. That cannot be turned back without the model, and a merge does not need it: the
stem is the name of the module.

lora_down.weight    A (r, in); of a convolution (r, in, *kernel)
lora_up.weight      B (out, r); of a convolution (out, r, 1, ...)
alpha               delta = alpha / r * B A; 1 * B A without it

The tensors of LyCORIS lie there, too, and are read as plain LoRA; that is how they are written.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from gam_merge._common.errors import collecting
from gam_merge._common.tensors import LazyTensor, MemoryTensor
from gam_merge._read import lycoris
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

_KEY = re.compile(r"(?P<stem>[^.]+)\.(?P<role>[^.]+(?:\.weight)?)")
_FACTORS = {"lora_down.weight": "down", "lora_up.weight": "up", **lycoris.ROLES}
_ROLES = {**_FACTORS, "alpha": "alpha"}
_PREFIXES = ("lora_", "lycoris_")  # of stems
# Metadata that a merge keeps where all sources agree.
_KEPT = (
    "ss_network_module", "ss_base_model_version", "ss_v2", "ss_sd_model_name",
    "modelspec.sai_model_spec", "modelspec.architecture", "modelspec.implementation",
    "modelspec.prediction_type", "modelspec.resolution",
)  # fmt: skip
_BASE, _TAGS, _TRIGGER = "ss_base_model_version", "ss_tag_frequency", "modelspec.trigger_phrase"
_PLAIN_MODULE = "networks.lora"  # of sd-scripts; what LyCORIS trained is written as plain LoRA
_MAX_TAGS = 2000  # per data set, the most frequent; sites show the first few


class Kohya(Format):
    """The format of kohya's sd-scripts, which ComfyUI, A1111 and diffusers read."""

    name = "kohya"
    weights_names = ("pytorch_lora_weights.safetensors",)
    mixed_ranks = True
    data_hash_key = "sshs_model_hash"

    def recognizes(self, contents: Contents) -> bool:
        for key in contents.tensors:
            match = _KEY.fullmatch(key)
            if match is None:
                continue
            if match["role"] in _FACTORS:
                return True
            if match["role"] in lycoris.REFUSED and match["stem"].startswith(_PREFIXES):
                return True
        return False

    def parse(self, contents: Contents, problems: list[str] | None = None) -> Adapter:
        where = contents.where
        stems: dict[str, Stem] = {}
        for key, tensor in contents.tensors.items():
            with collecting(problems):
                name, role = _split(where, key, stems)
                stems.setdefault(name, Stem(name)).add(where, key, role, tensor)
        modules: dict[str, LoraModule] = {}
        for name, stem in sorted(stems.items()):
            with collecting(problems):
                modules[name] = lora_module(where, stem)
        with collecting(problems):
            if any("alpha" in stem.parts for stem in stems.values()):
                check_alpha_not_given(contents, "a tensor per module")
            else:
                modules = with_given_alpha(contents, stems, modules)
        base_model = contents.metadata.get(_BASE) or None
        return Adapter(
            contents.source,
            modules,
            base_model or contents.base_model,
            config=dict(contents.metadata),
            notes=lycoris_notes(stems, modules),
            given=contents.given(base_model),
            format=self.name,
        )

    def describe(self, adapter: Adapter, sources: Sequence[Adapter] = ()) -> Adapter:
        check_holds(self, adapter, (Layout, ConvLayout))
        configs = [source.config for source in sources if source.format == self.name]
        ranks = {module.rank for module in adapter.modules.values()}
        rank = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
        config = {
            **_shared(configs),
            "ss_network_dim": rank,
            "ss_network_alpha": rank,
            **_united_tags(configs),
            **_united_triggers(configs),
        }
        if adapter.base_model is not None:
            config[_BASE] = adapter.base_model
        return replace(adapter, format=self.name, config=config)

    def module_tensors(self, module: LoraModule) -> dict[str, LazyTensor]:
        alpha = torch.tensor(module.scale * module.rank, dtype=torch.float32)
        return {
            f"{module.name}.lora_down.weight": module.a,
            f"{module.name}.lora_up.weight": module.b,
            f"{module.name}.alpha": MemoryTensor(alpha),
        }

    def metadata(self, adapter: Adapter, title: str) -> dict[str, str]:
        named = {"ss_output_name": title}
        if "modelspec.architecture" in adapter.config:
            named["modelspec.title"] = title
        return {**adapter.config, **named}


def _split(where: str, key: str, stems: Mapping[str, Stem]) -> tuple[str, str]:
    """Return the stem and the role of a key."""
    match = _KEY.fullmatch(key)
    if match is None:
        raise not_of_the_grammar(where, key, stems)
    if match["role"] not in _ROLES:
        raise refused(where, match["stem"], match["role"])
    return match["stem"], _ROLES[match["role"]]


def _shared(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the metadata that all sources agree on."""
    shared: dict[str, str] = {}
    for name in _KEPT:
        values = {config.get(name) for config in configs}
        value = values.pop() if len(values) == 1 else None
        if value is not None:
            shared[name] = value
    if not shared.get("ss_network_module", "").startswith("networks."):
        shared["ss_network_module"] = _PLAIN_MODULE
    return shared


def _united_tags(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return how often each tag was trained, by data set, summed over the sources."""
    united: dict[str, Counter[str]] = {}
    for config in configs:
        for folder, tags in _json_object(config.get(_TAGS)).items():
            if not isinstance(tags, Mapping):
                continue
            counts = {tag: count for tag, count in tags.items() if type(count) is int}
            united.setdefault(folder, Counter()).update(counts)
    if not united:
        return {}
    ordered = {folder: dict(tags.most_common(_MAX_TAGS)) for folder, tags in united.items()}
    return {_TAGS: json.dumps(ordered)}


def _united_triggers(configs: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return the trigger words of all sources, each once."""
    words: dict[str, None] = {}
    for config in configs:
        for word in config.get(_TRIGGER, "").split(","):
            words |= {word.strip(): None} if word.strip() else {}
    return {_TRIGGER: ", ".join(words)} if words else {}


def _json_object(text: str | None) -> Mapping[str, Any]:
    """Return the object of a JSON text; nothing for what is not one: it is a stranger's."""
    try:
        content = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, Mapping) else {}

"""Stems of kohya's files: a prefix for the component, and the path of a module with _ for its dots.

The path is found again by the words that the paths of a component are made of: ``to_q`` is one of
a UNet, ``q`` is not.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from gam_merge._translate.dialect import Renaming

TRANSFORMER_PREFIX = "lora_unet_"  # of UNets and of diffusion transformers


class Words:
    """The words that the paths of some modules are made of, besides numbers."""

    def __init__(self, words: str) -> None:
        longest_first = sorted(words.split(), key=len, reverse=True)
        word = "|".join((*longest_first, r"\d+"))
        self._word = re.compile(f"({word})(?:_|$)")
        self._stem = re.compile(f"(?:{word})(?:_(?:{word}))*")

    def path(self, stem: str) -> str | None:
        """Return the path that a stem, without its prefix, is of; None for one of other words."""
        return ".".join(self._word.findall(stem)) if self._stem.fullmatch(stem) else None

    def stem(self, path: str) -> str | None:
        """Return the stem of a path; None for one of other words."""
        stem = path.replace(".", "_")
        return stem if self.path(stem) == path else None


def _same(path: str) -> str | None:
    return path


@dataclass(frozen=True)
class Component:
    """A component of a pipeline, in kohya's files and in the common names.

    Attributes:
        prefix: what its stems begin with.
        name: what its common names begin with.
        words: what the paths in its stems are made of.
        common_path: the path in its common names of a path in its stems.
        own_path: the other way.
    """

    prefix: str
    name: str
    words: Words
    common_path: Callable[[str], str | None] = _same
    own_path: Callable[[str], str | None] = _same

    def common_name(self, stem: str) -> str | None:
        """Return the common name of a stem; None if it has none."""
        path = self.words.path(stem.removeprefix(self.prefix))
        common = None if path is None else self.common_path(path)
        return None if common is None else f"{self.name}.{common}"

    def stem(self, name: str) -> str | None:
        """Return the stem of a module with a common name; None if it has none."""
        path = self.own_path(name.removeprefix(f"{self.name}."))
        stem = None if path is None else self.words.stem(path)
        return None if stem is None else self.prefix + stem


class Stems:
    """The stems of the components of a pipeline."""

    def __init__(self, *components: Component) -> None:
        self._components = components

    def common_name(self, stem: str) -> str | None:
        """Return the common name of a stem; None if it has none."""
        for component in self._components:
            if stem.startswith(component.prefix):
                return component.common_name(stem)
        return None

    def stem(self, name: str) -> str | None:
        """Return the stem of a module with a common name; None if it has none."""
        for component in self._components:
            if name.startswith(f"{component.name}."):
                return component.stem(name)
        return None


def deciding(stems: Collection[str]) -> Sequence[str]:
    """Return the stems that tell which model a file is for: those of a UNet or a transformer.

    Pipelines share their text encoders, so those count only where there is nothing else.
    """
    return [stem for stem in stems if stem.startswith(TRANSFORMER_PREFIX)] or list(stems)


class KohyaNames(Renaming):
    """A dialect of kohya's files whose stems stand for one module of diffusers each.

    Attributes:
        stems: those of the pipeline.
    """

    format = "kohya"
    stems: Stems

    def recognizes(self, names: Collection[str]) -> bool:
        return any(self.common_name(name) for name in deciding(names))

    def common_name(self, name: str) -> str | None:
        return self.stems.common_name(name)

    def own_name(self, name: str) -> str | None:
        return self.stems.stem(name)


UNET = Words(
    "down_blocks mid_block up_blocks attentions resnets downsamplers upsamplers "
    "transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out conv conv1 "
    "conv2 conv_shortcut conv_in conv_out time_emb_proj time_embedding add_embedding linear_1 "
    "linear_2"
)
CLIP = Words(
    "text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection "
    "embeddings token_embedding position_embedding"
)
T5 = Words(
    "shared encoder embed_tokens block layer SelfAttention q k v o relative_attention_bias "
    "DenseReluDense wi wi_0 wi_1 wo"
)

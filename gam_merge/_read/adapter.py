"""An adapter: one LoRA checkpoint, known from its headers, its tensors read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from gam_merge._common.files import FileVersion
from gam_merge._common.tensors import LazyTensor, read
from gam_merge._read.layout import Layout
from gam_merge._read.record import Record

ExtraKind = Literal[
    "bias", "lora_bias", "modules_to_save", "trainable_tokens", "embedding", "base_weight"
]


@dataclass(frozen=True)
class LoraModule:
    """One adapted weight: delta = scale * B A.

    ``a`` and ``b`` are as PEFT stores them: (r, in) and (out, r) for a linear layer, what ``layout`` says for others.
    ``scale`` is alpha / r, or alpha / sqrt(r) with rsLoRA. ``magnitude`` makes it DoRA: the norms, one a row, to which
    the rows of base weight + delta are scaled.
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    scale: float
    layout: Layout = field(default_factory=Layout)
    magnitude: LazyTensor | None = None

    @cached_property
    def _matrices(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the factors as stacks: (S, m, r), (S, r, n)."""
        return self.layout.split_shapes(self.b.shape, self.a.shape)

    @property
    def matrix_rank(self) -> int:
        """The rank of each of its matrices."""
        return self._matrices[1][1]

    @property
    def rank(self) -> int:
        """r as a config counts it: that of one expert, or of all groups of a convolution together."""
        return self.matrix_rank * self.layout.groups

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of each of its matrices."""
        b, a = self._matrices
        return b[1], a[2]

    def factors(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """B and A as stacks of matrices, without the scale: (S, out, r), (S, r, in)."""
        return self.layout.split(
            read(self.b).to(dtype).unsqueeze(0), read(self.a).to(dtype).unsqueeze(0)
        )

    def delta(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The dense delta (out, in), or (S, out, in) of a stack. For small modules and for tests: the merge never
        forms it."""
        b, a = self.factors(dtype)
        return (self.scale * b @ a).squeeze(0)


@dataclass(frozen=True)
class Extra:
    """A tensor of an adapter that is no factor: a trained bias, a module saved whole, embeddings of some tokens.

    ``name`` is its key without prefixes and infixes. ``scale`` makes it what is added to the base (lora_bias).
    """

    name: str
    kind: ExtraKind
    tensor: LazyTensor
    scale: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """One LoRA checkpoint.

    ``source`` is what the user named, ``base_model`` the model that it was trained on if that is known, ``config``
    the fields of its adapter_config.json, ``extras`` its tensors that are no factors, by name, ``notes`` what the
    user should know about how it was read, ``given`` those fields of the config that the user had to tell. ``file``
    holds its weights, in that ``version``, unless they are in memory; ``revision`` is the commit that they were fetched
    from if that was the Hub; ``made_by`` is the merge that it came out of, if that was in this process and from files.
    """

    source: str
    modules: Mapping[str, LoraModule]
    base_model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    extras: Mapping[str, Extra] = field(default_factory=dict[str, Extra])
    notes: tuple[str, ...] = ()
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file: Path | None = None
    version: FileVersion | None = None
    revision: str | None = None
    made_by: Record | None = None

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.rank for module in self.modules.values())

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all of its factors."""
        dtypes = [t.dtype for module in self.modules.values() for t in (module.a, module.b)]
        result = dtypes[0]
        for dtype in dtypes:
            result = torch.promote_types(result, dtype)
        return result

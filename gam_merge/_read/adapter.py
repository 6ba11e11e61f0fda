"""An adapter: one LoRA checkpoint, known from its headers, its tensors read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, reduce
from pathlib import Path
from typing import Any, Literal

import torch

from gam_merge._common.files import FileVersion
from gam_merge._common.tensors import LazyTensor, read, stored_dtype
from gam_merge._read.layout import Layout
from gam_merge._read.record import Record

ExtraKind = Literal[
    "bias", "lora_bias", "modules_to_save", "trainable_tokens", "embedding", "base_weight"
]


@dataclass(frozen=True)
class LoraModule:
    """One adapted weight: delta = scale * B A.

    Attributes:
        name: its name in the model, without prefixes of the file.
        a: the factor A, (r, in) of a linear layer; as ``layout`` says for others.
        b: the factor B, (out, r) of a linear layer; as ``layout`` says for others.
        scale: alpha / r, or alpha / sqrt(r) with rsLoRA.
        layout: how the factors are stored.
        magnitude: makes it DoRA: the norms, one per row, to which the rows of base weight + delta
            are scaled.
        wrapper: the module of the model that it stands in, where a format wraps several adapted
            modules in one another.
        spelling: how the keys of its factors end, where its format has several ways.
        kept: the share of the squared norm of what its file stores that the factors hold; below 1
            where that is not a LoRA of a rank that can be worked with.

    Example:
        >>> module = gm.load("examples/adapters/addition").modules["model.layers.0.mlp.up_proj"]
        >>> module.shape, module.rank, module.scale
        ((1536, 576), 8, 2.0)
        >>> tuple(module.delta().shape)
        (1536, 576)
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    scale: float
    layout: Layout = field(default_factory=Layout)
    magnitude: LazyTensor | None = None
    wrapper: str | None = None
    spelling: str = ""
    kept: float = 1.0

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
        """r as a config counts it: that of one expert, or of all groups of a convolution."""
        return self.matrix_rank * self.layout.groups

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of each of its matrices."""
        b, a = self._matrices
        return b[1], a[2]

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds what its file stores of it."""
        return torch.promote_types(stored_dtype(self.a), stored_dtype(self.b))

    @property
    def owner(self) -> str:
        """The module of the model that it belongs to: its own name unless it is wrapped."""
        return self.wrapper or self.name

    def factors(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        """B and A as stacks of matrices, without the scale: (S, out, r), (S, r, in)."""
        b, a = read(self.b).to(dtype), read(self.a).to(dtype)
        return self.layout.split(b.unsqueeze(0), a.unsqueeze(0))

    def delta(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The dense delta (out, in), or (S, out, in) of a stack.

        For small modules and for tests: a merge never forms it.
        """
        b, a = self.factors(dtype)
        return (self.scale * b @ a).squeeze(0)


@dataclass(frozen=True)
class Extra:
    """A tensor of an adapter that is not a factor.

    Attributes:
        name: its key without prefixes and infixes.
        kind: a trained bias, a module saved whole, embeddings of some tokens, ...
        tensor: its values.
        scale: makes it what is added to the base (lora_bias).
    """

    name: str
    kind: ExtraKind
    tensor: LazyTensor
    scale: float = 1.0


@dataclass(frozen=True)
class Adapter:
    """One LoRA checkpoint.

    Attributes:
        source: as the user named it.
        modules: the adapted modules, by name.
        base_model: the model that it was trained on, if that is known.
        config: the fields of its config as they were read. They are for the writer of its format
            and for users; the library itself reads the fields below.
        extras: its tensors that are not factors, by name.
        notes: how it was read, as far as the user should know.
        given: ``base_model`` and ``alpha``, as far as the user had to give them.
        file: the file of its weights, unless they are in memory.
        version: the version of that file, to notice a change.
        config_file: the file of its config, if there was one.
        config_version: the version of that file.
        revision: the commit on the Hub that it was fetched from.
        made_by: the merge that it came out of, if that was in this process and from files.
        format: the name of the format that it was read in.
        alpha: the alpha of its config; modules may have others.
        task: the task of its model, as PEFT calls it (``CAUSAL_LM``).
        transposed: whether the weights of its layers are kept as (in, out).
        tokens: the rows of embeddings that it trained, by the end of a module's name; under ``""``
            those of all.
        ties_weights: whether embedding and head stay one tensor though it changes one of them.
        settings: what makes it more, or other, than a plain LoRA, by the names of its config.

    Example:
        >>> adapter = gm.load("examples/adapters/addition")
        >>> adapter.rank, adapter.dtype, len(adapter.modules)
        (8, torch.bfloat16, 210)
        >>> adapter.base_model
        'HuggingFaceTB/SmolLM2-135M-Instruct'
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
    config_file: Path | None = None
    config_version: FileVersion | None = None
    revision: str | None = None
    made_by: Record | None = None
    format: str = "peft"
    alpha: float | None = None
    task: str | None = None
    transposed: bool = False
    tokens: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    ties_weights: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.rank for module in self.modules.values())

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all of its factors, as they are stored."""
        return reduce(torch.promote_types, (module.dtype for module in self.modules.values()))

    @property
    def is_dora(self) -> bool:
        """Whether some of its modules have magnitudes."""
        return any(module.magnitude is not None for module in self.modules.values())

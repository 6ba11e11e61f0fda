"""An adapter: one LoRA checkpoint, known from its headers, its tensors read when asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gam_merge._tensors import LazyTensor, read

if TYPE_CHECKING:
    from gam_merge._record import Record


@dataclass(frozen=True)
class LoraModule:
    """One adapted weight: delta = scale * B A.

    ``a`` is (r, in) and ``b`` is (out, r), as PEFT stores a linear layer; ``scale`` is alpha / r, or alpha / sqrt(r)
    with rsLoRA.
    """

    name: str
    a: LazyTensor
    b: LazyTensor
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the delta."""
        return self.b.shape[0], self.a.shape[1]

    def delta(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """The dense delta (out, in). For small modules and for tests: the merge never forms it."""
        return self.scale * read(self.b).to(dtype) @ read(self.a).to(dtype)


@dataclass(frozen=True)
class Adapter:
    """One LoRA checkpoint.

    ``source`` is what the user named, ``base_model`` the model that it was trained on if that is known, ``config``
    the fields of its adapter_config.json, ``given`` those of them that the user had to tell. ``file`` holds its
    weights unless they are in memory; ``revision`` is the commit that they were fetched from if that was the Hub;
    ``made_by`` is the merge that it came out of, if that was in this process and from files.
    """

    source: str
    modules: Mapping[str, LoraModule]
    base_model: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    given: Mapping[str, Any] = field(default_factory=dict[str, Any])
    file: Path | None = None
    revision: str | None = None
    made_by: "Record | None" = None

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.rank for module in self.modules.values())

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest dtype that holds all of its tensors."""
        dtypes = [t.dtype for module in self.modules.values() for t in (module.a, module.b)]
        result = dtypes[0]
        for dtype in dtypes:
            result = torch.promote_types(result, dtype)
        return result

"""``merge``: the one function that does the whole job."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from gam_merge._common.files import check_unchanged, sha256_of
from gam_merge._common.tensors import LazyTensor, MemoryTensor, read
from gam_merge._common.types import Progress
from gam_merge._lineup.options import MergeOptions, explicit
from gam_merge._lineup.serving import check_target
from gam_merge._load import Source, load
from gam_merge._plan import MergePlan, plan
from gam_merge._read.adapter import Adapter, Extra, LoraModule
from gam_merge._read.place import companions_of, is_file_name
from gam_merge._read.record import Record
from gam_merge._run.choice import choose
from gam_merge._run.engine import Sink, run, run_extras
from gam_merge._run.report import MergeReport, erasure_notes
from gam_merge._run.survey import needed_ranks, survey
from gam_merge._write.adapter import (
    CARD_NAME,
    RECIPE_NAME,
    REPORT_NAME,
    ModuleWriter,
    adapter_output,
    adapter_weights,
    as_json,
    config_files,
    save_adapter,
    weights_name,
)
from gam_merge._write.card import card_text
from gam_merge._write.output import check_output
from gam_merge._write.provenance import METHOD_KEY, ORIGINS_KEY, origins_text, recipe_text


@dataclass(frozen=True)
class MergeResult:
    """A merged adapter, in memory or on disk, and what the merge did.

    Attributes:
        adapter: the merge, as a source of further merges or for ``state_dict``.
        report: norms, survival and warnings, in all and by module.
        record: method, parameters and sources, from which a recipe is written.
        path: the directory or file that was written, if there was one.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(sources, method="mean", rank=8)
        >>> result.adapter.rank, result.path
        (8, None)
        >>> result.save("merged").name
        'merged'
    """

    adapter: Adapter
    report: MergeReport
    record: Record
    path: Path | None = None

    def save(self, path: str | PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter in its format, with report, recipe and card.

        Args:
            path: the directory to write, whole or not at all; or a file ``NAME.safetensors`` or
                ``NAME.gguf``, the texts about which go into ``NAME.gam-merge`` next to it.
            force: replace a ``path`` that is empty or an earlier merge.

        Returns:
            Path: the same.

        Raises:
            GamMergeError: if it cannot be written.
        """
        out = Path(path)
        check_output(out, force=force)
        texts = partial(_texts, self.adapter, self.report, self.record, out)
        return save_adapter(out, self.adapter, _metadata(self.record), texts, force=force)

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool = False,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Merged LoRA adapter",
    ) -> str:
        """Upload to the Hub, as ``push`` does.

        A result in memory is written to a temporary directory first, which stays if the upload
        fails.

        Args:
            repo: ``user/name``.
            private: create the repository as private.
            revision: the branch; it is created if it does not exist.
            create_pr: open a pull request instead.
            commit_message: the message of the commit.

        Returns:
            str: the URL of the commit or of the pull request.

        Raises:
            GamMergeError: with the command that tries again.
        """
        from gam_merge._push import push  # loads huggingface_hub, which takes a while

        directory = self.path
        if directory is None:
            directory = self.save(Path(tempfile.mkdtemp(prefix="gam-merge-")) / "merged")
        url = push(
            directory,
            repo,
            private=private,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
        )
        if self.path is None:
            shutil.rmtree(directory.parent)
        return url


@explicit()
def merge(
    sources: Sequence[Source],
    *,
    out: str | PathLike[str] | None = None,
    force: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
    **options: Unpack[MergeOptions],
) -> MergeResult:
    """Merge LoRA adapters into one.

    Args:
        sources: directories, files, Hub ids or adapters in memory, at least one; see ``load``.
        out: the directory to which the adapter is streamed, or a file ``NAME.safetensors`` or
            ``NAME.gguf``, the texts about which go into ``NAME.gam-merge`` next to it; without it
            the result stays in memory until ``save``.
        force: replace an ``out`` that is empty or an earlier merge.
        executor: any ``concurrent.futures.Executor`` runs the chunks of modules, for instance that
            of a Dask client; threads of this process by default. The bytes are the same with any.
        progress: called with (modules done, modules in all).

    Returns:
        MergeResult: the adapter (in memory, or on disk with ``out``), the report, the record.

    Raises:
        GamMergeError: and then nothing is written.

    Example:
        >>> sources = ["examples/adapters/addition", "examples/adapters/sorting"]
        >>> result = gm.merge(sources, method="mean", weights=[0.7, 0.3], rank=16, out="merged")
        >>> [round(share, 2) for share in result.report.survival]  # of each adapter in the result
        [0.7, 0.3]
        >>> result.path.name
        'merged'
    """
    planned = plan(sources, out=out, force=force, **options)
    planned, summary = settle(planned, executor)
    run_into = partial(_run, planned, summary, executor, progress)
    if out is None:
        return _in_memory(planned, run_into)
    return _to_disk(planned, run_into, Path(out), force)


def settle(planned: MergePlan, executor: Executor | None = None) -> tuple[MergePlan, Any]:
    """Return the plan with its final method and ranks, and the summary of methods that need one.

    Each needs deltas before the first module is written, and takes a pass over the tensors, or over
    some of them. Raises GamMergeError.
    """
    if planned.job.method.chooses:
        planned = planned.decided(choose(planned.lineup, planned.job, executor))
    lineup, job, policy = planned.lineup, planned.job, planned.policy
    summary = survey(lineup, job, executor)
    if not policy.needs_spectra:
        return planned, summary
    energy = 1.0 if policy.energy is None else policy.energy
    needed = needed_ranks(lineup, job, energy, summary=summary, executor=executor)
    lineup = policy.after_reading(lineup, needed)
    check_target(lineup, planned.target)
    return replace(planned, lineup=lineup), summary


class _Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.modules: dict[str, LoraModule] = {}
        self.extras: dict[str, Extra] = {}

    def module(self, module: LoraModule) -> None:
        a, b = _copied(module.a), _copied(module.b)
        magnitude = None if module.magnitude is None else _copied(module.magnitude)
        self.modules[module.name] = replace(module, a=a, b=b, magnitude=magnitude)

    def extra(self, extra: Extra) -> None:
        self.extras[extra.name] = replace(extra, tensor=_copied(extra.tensor))


def _copied(tensor: LazyTensor) -> MemoryTensor:
    """Return a tensor of its own: the chunk that it was cut from is free to go."""
    return MemoryTensor(read(tensor))


def _in_memory(planned: MergePlan, run_into: Callable[[Sink], MergeReport]) -> MergeResult:
    promised, memory, made_by = planned.lineup.promised(), _Memory(), planned.record()
    report = run_into(memory)
    modules: dict[str, LoraModule] = {}
    for name, module in promised.modules.items():
        merged = memory.modules[name]
        modules[name] = replace(module, a=merged.a, b=merged.b, magnitude=merged.magnitude)
    origin = made_by if made_by.repeatable else None
    adapter = replace(promised, modules=modules, extras=memory.extras, made_by=origin, notes=())
    return MergeResult(adapter, report, made_by)


def _to_disk(
    planned: MergePlan, run_into: Callable[[Sink], MergeReport], out: Path, force: bool
) -> MergeResult:
    promised, made_by = planned.lineup.promised(), planned.record()
    placeholder = _metadata(made_by, known=False)
    with adapter_output(out, promised, force=force) as output:
        with (
            adapter_weights(output, out, promised, placeholder) as weights,
            ThreadPoolExecutor(1, "gam-merge-aside") as aside,
        ):
            metadata = aside.submit(_metadata, made_by)  # reads every source once more
            report = run_into(ModuleWriter(promised, weights))
            weights.amend(metadata.result())
        digest = output.sha256(weights_name(out, promised))
        output.commit(_texts(promised, report, made_by, out, digest))
    return MergeResult(load(out), report, made_by, out)


def _texts(
    adapter: Adapter, report: MergeReport, made_by: Record, out: Path, weights: str
) -> dict[str, str]:
    """Return the files next to the weights by name, the config last. weights: their sha256."""
    home = companions_of(out) if is_file_name(out) else out
    configs = config_files(adapter)
    digests = {weights_name(out, adapter): weights}
    digests |= {name: sha256_of(text) for name, text in configs.items()}
    return {
        CARD_NAME: card_text(adapter, report, made_by, digests),
        REPORT_NAME: as_json(report.to_dict()),
        RECIPE_NAME: recipe_text(made_by, home, digests),
        **configs,
    }


def _run(
    planned: MergePlan,
    summary: Any,
    executor: Executor | None,
    progress: Progress | None,
    sink: Sink,
) -> MergeReport:
    """Merge every module and every extra into a sink."""
    lineup, job = planned.lineup, planned.job
    modules = run(lineup, job, sink, summary=summary, executor=executor, progress=progress)
    run_extras(lineup, job, sink)
    for adapter in lineup.adapters:
        if adapter.file and adapter.version:
            check_unchanged(adapter.file, adapter.version)
        if adapter.config_file and adapter.config_version:
            check_unchanged(adapter.config_file, adapter.config_version)
    report = MergeReport(
        method=job.method.name,
        sources=tuple(adapter.source for adapter in lineup.adapters),
        weights=planned.weights,
        anchor=job.anchor,
        rank=planned.rank,
        dtype=planned.dtype,
        modules=modules,
        params=job.method.validate({}) | dict(job.settings.params),
        choice=planned.choice,
        extras=dict(Counter(extra.kind for extra in lineup.written_extras)),
        notes=planned.notes,
    )
    if not job.method.normalize:
        return report
    return replace(report, notes=(*report.notes, *erasure_notes(report)))


def _metadata(made_by: Record, *, known: bool = True) -> dict[str, str]:
    """Return the metadata of the weights, of one length whether digests are ``known`` or not."""
    return {METHOD_KEY: made_by.method, ORIGINS_KEY: origins_text(made_by, known=known)}

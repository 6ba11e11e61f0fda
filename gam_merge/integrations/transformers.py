"""Merges during a training run, by the trainers of transformers and TRL.

from gam_merge.integrations.transformers import MergeCheckpointsCallback
trainer.add_callback(MergeCheckpointsCallback(last=3))  # the mean of the last three
trainer.add_callback(MergeCheckpointsCallback(adapters=["org/other"], method="gam"))
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from peft import PeftModel
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from gam_merge._checkpoints import ema_weights, find_checkpoints
from gam_merge._common.errors import GamMergeError
from gam_merge._lineup.options import MergeOptions
from gam_merge._load import Source
from gam_merge._merge import MergeResult, merge
from gam_merge._plan import plan
from gam_merge._read.adapter import Adapter
from gam_merge._recipe import recipe_settings
from gam_merge.integrations.peft import evaluating, from_model, with_adapter

Evaluate = Callable[[PeftModel], float]


@dataclass(frozen=True)
class MergeRecord:
    """One merge of a run. Scores are None without an evaluation; ``kept``: it was written."""

    step: int
    score: float | None
    run_score: float | None
    kept: bool


class MergeCheckpointsCallback(TrainerCallback):
    """Merges adapters at every save and at the end of the training, into one directory.

    By default the last checkpoints of the run; with ``adapters`` the run as it is and these. The
    directory is whole at any time. A merge that fails is a warning: training continues. What can
    be checked beforehand is checked when the training begins, and raises GamMergeError.

    Args:
        last: how many checkpoints to merge; ``save_total_limit`` must leave as many.
        adapters: merge the run with these instead of its checkpoints.
        ema: decay of a moving average over the checkpoints, in [0, 1).
        out: the directory to write, by default ``merged`` in the output folder of the run.
        evaluate: returns the score of a model, such as
            ``lambda model: trainer.evaluate()["eval_loss"]``; called with the merge active in the
            model that is trained, which is then as it was before.
        greater_is_better: whether a higher score is better.
        keep_if_better: write only merges that score better than the run does at that moment and
            than the merge written last.
        recipe: a file with the settings of the merge; its sources give the weights alone.
        options: those of ``gam_merge.merge``.

    Attributes:
        history: every merge of the run, with its scores.
    """

    def __init__(
        self,
        *,
        last: int = 3,
        adapters: Sequence[Source] = (),
        ema: float | None = None,
        out: str | PathLike[str] | None = None,
        evaluate: Evaluate | None = None,
        greater_is_better: bool = False,
        keep_if_better: bool = False,
        recipe: str | PathLike[str] | None = None,
        **options: Unpack[MergeOptions],
    ) -> None:
        if keep_if_better and evaluate is None:
            raise GamMergeError(
                "keep_if_better needs evaluate, a function that returns the score of a model"
            )
        self._last, self._adapters, self._ema, self._out = last, list(adapters), ema, out
        self._evaluate, self._sign, self._keep_if_better = (
            evaluate,
            1 if greater_is_better else -1,
            keep_if_better,
        )
        self._options: MergeOptions = {} if adapters or recipe else {"method": "mean"}
        if recipe:
            self._options.update(recipe_settings(recipe))
        self._options.update(options)
        self._best: float | None = None
        self._merged_at: int | None = None
        self.history: list[MergeRecord] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Plan a merge like those to come: mistakes show now and not after hours."""
        run = _run(kwargs["model"])
        sources = [run, *self._adapters] if self._adapters else [run] * self._last
        plan(sources, **self._settings(len(sources)))

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._merge(args, state, kwargs["model"])

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._merged_at != state.global_step:
            self._merge(args, state, kwargs["model"])

    def _merge(self, args: TrainingArguments, state: TrainerState, model: PeftModel) -> None:
        if not state.is_world_process_zero:
            return
        self._merged_at = state.global_step
        try:
            result = self._result(args, model)
            if result is not None:
                self._finish(
                    Path(self._out or Path(str(args.output_dir)) / "merged"), result, state, model
                )
        except GamMergeError as error:
            warnings.warn(f"no merge at step {state.global_step}: {error}", stacklevel=2)

    def _result(self, args: TrainingArguments, model: PeftModel) -> MergeResult | None:
        """Return the merge in memory; None while there are fewer checkpoints than weights."""
        if self._adapters:
            sources: list[Source] = [_run(model), *self._adapters]
        else:
            sources = list(find_checkpoints(str(args.output_dir), last=self._last))
            if len(sources) < self._last and "weights" in self._options:
                return None
        return merge(sources, **self._settings(len(sources)))

    def _settings(self, count: int) -> MergeOptions:
        settings = self._options.copy()
        if self._ema is not None and not self._adapters:
            settings.setdefault("weights", ema_weights(count, self._ema))
        return settings

    def _finish(
        self, out: Path, result: MergeResult, state: TrainerState, model: PeftModel
    ) -> None:
        """Score the merge, and write it unless it had to be better."""
        score = run_score = None
        if self._evaluate is not None:
            with evaluating(model):
                run_score = float(self._evaluate(model))
            with with_adapter(model, result.adapter):
                score = float(self._evaluate(model))
            state.log_history.append(
                {"step": state.global_step, "merge_score": score, "run_score": run_score}
            )
        kept = not self._keep_if_better or self._is_better(score, run_score)
        if kept:
            result.save(out, force=True)
            self._best = score
        self.history.append(MergeRecord(state.global_step, score, run_score, kept))

    def _is_better(self, score: float | None, run_score: float | None) -> bool:
        rivals = [rival for rival in (run_score, self._best) if rival is not None]
        return score is not None and all(
            self._sign * score > self._sign * rival for rival in rivals
        )


def _run(model: PeftModel) -> Adapter:
    """Return the adapter that is trained."""
    return from_model(
        model, model.active_adapters[0] if isinstance(model, PeftModel) else "default"
    )

"""Steps of transformers' Trainer: checkpoints that are whole, progress, and a stop at a loss that is not finite."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from bitsmith.errors import TensorError
from bitsmith.system.progress import Progress, Report
from bitsmith.tune.adapters import trained
from bitsmith.tune.batches import Collator, Row
from bitsmith.tune.checkpoints import KEPT, latest, save
from bitsmith.tune.config import OPTIMIZERS, QloraConfig
from bitsmith.tune.loss import Head, find_head, token_loss

_SAVED = 12  # bytes of a checkpoint for each trained number: itself and two moments in float32
_CLIPPED = 1.0  # largest norm of a step's gradients
_LOGGED = 200  # lines of the loss over a whole run
_SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}

History = list[dict[str, Any]]


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to measure on, and how they become batches."""

    rows: Sequence[Row]
    judged: Sequence[Row]
    collator: Collator


class NotFiniteError(TensorError):
    """The loss was NaN or infinite. The model holds the last adapter that gave a finite one. step: from 1"""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def train(model: Any, data: Data, config: QloraConfig, folder: Path, steps: int, report: Report) -> History:
    """Train the adapters of a model. Returns the history: dictionaries with "step" and "loss" or "eval_loss".

    folder: of the checkpoints; the latest whole one is gone on from, if there is one
    Raises NotFiniteError.
    """
    device = next(model.parameters()).device
    found = latest(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers about itself
        if config.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        trainer = _Trainer(
            model=model,
            args=_arguments(config, folder, steps, judged=bool(data.judged), cpu=device.type == "cpu"),
            data_collator=data.collator,
            train_dataset=data.rows,
            eval_dataset=data.judged or None,
            callbacks=[_Steps(report)],
        )
        trainer.head = find_head(model)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=None if found is None else str(found))
    history: History = [line for line in trainer.state.log_history if "train_runtime" not in line]
    return history


def held_out_loss(model: Any, rows: Sequence[Row], collator: Collator, batch: int) -> float:
    """Mean loss in nats over all learned tokens of some rows, without dropout."""
    was_training, total, count = model.training, 0.0, 0
    device = next(model.parameters()).device
    head = find_head(model)
    model.eval()
    try:
        for start in range(0, len(rows), batch):
            inputs = {name: value.to(device) for name, value in collator(rows[start : start + batch]).items()}
            with torch.no_grad():
                loss, tokens = token_loss(model, head, inputs)
            total, count = total + float(loss), count + tokens
    finally:
        model.train(was_training)
    return total / max(count, 1)


class _Trainer(Trainer):
    """Computes logits by slabs, keeps the last adapter whose losses were finite, and marks whole checkpoints."""

    good: dict[str, Tensor] | None = None
    head: Head | None = None  # of `find_head`
    _staging: Path | None = None  # where the checkpoint that is being written lies

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the tokens of a step; transformers' own where the head is not a plain one."""
        if self.head is None or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, _ = token_loss(model, self.head, inputs)
        return total / num_items_in_batch

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """See transformers. Raises NotFiniteError."""
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if not bool(torch.isfinite(loss)):
            step = self.state.global_step + 1
            self._restore()
            raise NotFiniteError(
                f"the loss is {float(loss)} in step {step}: the step size is too large, or the base or the data is "
                "damaged. Try a tenth of the --learning-rate, and `bitsmith inspect --verify` for the base",
                step,
            )
        if self.accelerator.sync_gradients:  # every batch of this step was finite with these weights
            self.good = {name: value.detach().clone() for name, value in self._adapter().items()}
        return loss

    def _adapter(self) -> dict[str, Any]:
        model: Any = self.model
        return dict(trained(model))

    def _restore(self) -> None:
        with torch.no_grad():
            for name, value in self._adapter().items():
                if self.good is not None:
                    value.copy_(self.good[name])

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The loss on the rows to measure on, over all tokens alike."""
        rows: Any = self.eval_dataset
        collator: Any = self.data_collator
        loss = held_out_loss(self.model, rows, collator, self.args.per_device_eval_batch_size)
        self.log({"eval_loss": loss})
        return {"eval_loss": loss}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        saves, folder = super()._save_checkpoint, Path(str(self.args.output_dir))

        def write(staging: Path) -> None:
            self._staging = staging
            try:
                saves(model, trial)
            finally:
                self._staging = None

        numbers = sum(value.numel() for value in self._adapter().values())
        save(folder, self.state.global_step, write, nbytes=_SAVED * numbers)

    def _get_output_dir(self, trial: Any) -> str:
        return str(super()._get_output_dir(trial) if self._staging is None else self._staging)


class _Steps(TrainerCallback):
    """Reports every step, with the latest loss."""

    def __init__(self, report: Report) -> None:
        self._report, self._loss = report, ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The start, or where a stopped run goes on."""
        self._report(Progress("train", state.global_step, state.max_steps, "steps"))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step."""
        self._report(Progress("train", state.global_step, state.max_steps, "steps", self._loss))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The loss."""
        if logs and "loss" in logs:
            self._loss = f"loss {float(logs['loss']):.3f}"


def _arguments(config: QloraConfig, folder: Path, steps: int, *, judged: bool, cpu: bool) -> TrainingArguments:
    every = config.save_every or max(1, steps // 10)
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=config.batch,
        per_device_eval_batch_size=config.batch,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=round(config.warmup * steps),
        optim=OPTIMIZERS[config.optimizer],
        weight_decay=0.0,
        max_grad_norm=_CLIPPED,
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=cpu,
        logging_steps=max(1, steps // _LOGGED),
        logging_nan_inf_filter=False,
        save_steps=every,
        save_total_limit=KEPT,
        eval_strategy="steps" if judged else "no",
        eval_steps=every if judged else None,
        remove_unused_columns=False,
        dataloader_pin_memory=not cpu,
        disable_tqdm=True,
        report_to=[],
    )

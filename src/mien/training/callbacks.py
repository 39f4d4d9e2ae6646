"""What happens beside the steps of a run: checkpoints, averaged weights, the progress bar, the table of metrics."""

import csv
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from mien.checkpoint import read_header
from mien.files import whole
from mien.networks import Network, save_network


class Keep(Callback):
    """Writes `best.safetensors`, whenever a validation is the best so far, and `last.safetensors` after every one.

    every: as well `step_N.safetensors` after each, behind step N, so that the choice can be made, or an average, later.

    Stands before the averaging callback, whose weights are then still in place.
    """

    def __init__(self, folder: Path, header: dict[str, Any], monitor: str, every: bool = False):
        self.folder, self.header, self.monitor, self.best = folder, header, monitor, float("-inf")
        self.every = every

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A run that is resumed has to beat what it wrote before it was cut, even after its last `resume.ckpt`."""
        if trainer.global_step and (self.folder / "best.safetensors").exists():
            self.best = read_header(self.folder / "best.safetensors")["training"]["metrics"][self.monitor]

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        metrics = {name: round(float(value), 5) for name, value in module.metrics.compute().items()}  # of all processes
        if not trainer.is_global_zero:
            return
        training = self.header["training"] | {"metrics": metrics, "steps": trainer.global_step}
        header = self.header | {"training": training}
        save_network(self.folder / "last.safetensors", module.network, header)
        if self.every:
            save_network(self.folder / f"step_{trainer.global_step}.safetensors", module.network, header)
        if metrics[self.monitor] > self.best:
            self.best = metrics[self.monitor]
            save_network(self.folder / "best.safetensors", module.network, header)


class Resume(Checkpoint):
    """Writes `resume.ckpt`, all that a run goes on from, whole or not at all, every so many steps.

    When that is the last step of an epoch it waits for the validation, which would not be repeated.
    """

    def __init__(self, folder: Path, every: int):
        self.file, self.every, self.saved = folder / "resume.ckpt", every, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.saved = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index + 1 < trainer.num_training_batches:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step != self.saved:
            self.saved = trainer.global_step
            part = self.file.with_name(self.file.name + ".part")
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                os.replace(part, self.file)


class Average(WeightAveraging):
    """Validates and keeps `decay · average + (1 - decay) · weights`, updated every step.

    Buffers of whole numbers are copied: averaged, as Lightning's own EMA does, rounding lowers them, and an index into
    a table points elsewhere.
    """

    def __init__(self, decay: float):
        def average(mean: Tensor, now: Tensor, _: Any) -> Tensor:
            return mean.lerp(now, 1 - decay) if mean.is_floating_point() else now

        super().__init__(avg_fn=average)


class Waiting(Callback):
    """How long training waits for faces, and how long its steps take, in seconds: `waited`, `stepped`.

    Waiting is all between the end of a step and the start of the next, decoding and augmenting, without validation.
    """

    def __init__(self):
        self.waited = self.stepped = 0.0
        self.mark = time.monotonic()

    @property
    def share(self) -> float:
        return self.waited / max(self.waited + self.stepped, 1e-9)

    def _since(self) -> float:
        before, self.mark = self.mark, time.monotonic()
        return self.mark - before

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._since()

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        self.waited += self._since()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.stepped += self._since()

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._since()


class Decay(Callback):
    """Pooling that sets in slowly: in epoch e of E a network of N patches keeps

        t = e / (E - 1);   keep_patches = round(N + (k - N) · t);   keep_rate = 1 + (r - 1) · t

    and so ends with the k and r that it was built with. It is validated, and so chosen and kept, with these throughout,
    as they are what its checkpoints say. *Inferred*: the paper says that k and r fall in a line, and no more.

    Paper: Xue et al., APViT, arXiv 2212.05463.
    """

    def __init__(self, network: Network):
        self.network, self.patches, self.rates = network, network.keep_patches, network.keep_rate

    def _pool(self, t: float) -> None:
        if self.patches is not None:
            all_patches = self.network.num_patches
            self.network.keep_patches = round(all_patches + (self.patches - all_patches) * t)
        self.network.keep_rate = [1 + (rate - 1) * t for rate in self.rates]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        last = trainer.max_epochs - 1
        self._pool(trainer.current_epoch / last if last else 1.0)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._pool(1.0)


class Bar(ProgressBar):
    """One bar for the whole run on stderr, and a line after every validation."""

    def __init__(self, name: str):
        super().__init__()
        self.name, self.bar, self.quiet = name, None, False

    def disable(self) -> None:
        self.quiet = True

    def enable(self) -> None:
        self.quiet = False

    def print(self, *words: Any, sep: str = " ", **_: Any) -> None:
        if not self.quiet:
            tqdm.write(sep.join(map(str, words)), file=sys.stderr)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self.bar = tqdm(
            desc=self.name,
            unit="step",
            total=None if total == float("inf") else int(total),
            initial=trainer.global_step,
            disable=self.quiet,
            mininterval=0.1 if sys.stderr.isatty() else 60,
            dynamic_ncols=True,
        )

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.bar.set_postfix(_rounded(trainer.progress_bar_metrics), refresh=False)
        self.bar.update(trainer.global_step - self.bar.n)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bar is not None and not trainer.sanity_checking:
            metrics = _rounded(trainer.progress_bar_metrics)
            self.bar.set_postfix(metrics, refresh=False)
            told = ", ".join(f"{name} {value}" for name, value in metrics.items())
            self.print(f"{self.name}, step {trainer.global_step}: {told}")

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.bar.close()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self.bar is not None:
            self.bar.close()


def _rounded(metrics: dict[str, Any]) -> dict[str, str]:
    return {name: f"{float(value):.4f}" for name, value in metrics.items()}


class MetricsFile(Logger):
    """`metrics.csv`, a row for each step that is logged; a run that is resumed goes on where its last one was cut.

    The row of the very step whose `resume.ckpt` was written may be missing: it comes after.
    """

    def __init__(self, folder: Path, resume: bool):
        super().__init__()
        self.file = folder / "metrics.csv"
        self.rows: dict[int, dict[str, Any]] = {}
        if resume and self.file.exists():
            with self.file.open(newline="") as file:
                self.rows = {int(row["step"]): row for row in csv.DictReader(file)}

    name = version = ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """They are in recipe.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows = {at: row for at, row in self.rows.items() if at <= step}
        self.rows.setdefault(step, {}).update({"step": step, **metrics})
        columns = dict.fromkeys(name for row in self.rows.values() for name in row)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(self.rows.values())
        with whole(self.file) as file:
            file.write(text.getvalue().encode())

"""What happens beside the steps of a run: checkpoints, averaged weights, the progress bar, the table of metrics."""

import csv
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ProgressBar, WeightAveraging
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn
from tqdm import tqdm

from mien.checkpoint import read_header
from mien.files import whole
from mien.networks import Network, save_network


class Keep(Callback):
    """Writes `best.safetensors`, whenever a validation is the best so far, and `last.safetensors` after every one.

    folder: of the files. header: of both, without metrics.
    monitor: what is best, "val_accuracy", "val_macro_f1" or "val_loss".
    every: as well `step_N.safetensors` after each, behind step N, so that the choice can be made, or an average, later.
    learned: faces that are validated have been learned: files have no metrics, and the best is the last.
    patience: the run ends after so many validations in a row without a better one; 0: never before its end.

    Stands before the averaging callback, whose weights are then still in place.
    """

    def __init__(
        self,
        folder: Path,
        header: dict[str, Any],
        monitor: str,
        every: bool = False,
        patience: int = 0,
        learned: bool = False,
    ):
        self.learned = learned
        self.folder, self.header, self.monitor, self.best = folder, header, monitor, float("-inf")
        self.every, self.patience, self.without = every, patience, 0

    def state_dict(self) -> dict[str, Any]:
        return {"without": self.without}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.without = state_dict["without"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """A run that is resumed has to beat what it wrote before it was cut, even after its last `resume.ckpt`."""
        if trainer.global_step and not self.learned and (self.folder / "best.safetensors").exists():
            self.best = self._rank(read_header(self.folder / "best.safetensors")["training"]["metrics"])

    def _rank(self, metrics: dict[str, float]) -> float:
        return -metrics["val_loss"] if self.monitor == "val_loss" else metrics[self.monitor]

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        values = module.metrics.compute() | {"val_loss": module.validation_loss.compute()}  # of all processes
        metrics = {name: round(float(value), 5) for name, value in values.items()}
        better = self.learned or self._rank(metrics) > self.best
        self.without = 0 if better else self.without + 1
        if self.patience and self.without >= self.patience:
            trainer.should_stop = True
        if better:
            self.best = self._rank(metrics)
        if not trainer.is_global_zero:
            return
        training = self.header["training"] | {"metrics": metrics, "steps": trainer.global_step}
        if self.learned:
            training = training | {"metrics": {}, "measured": "not on faces that it has not learned"}
        header = self.header | {"training": training}
        save_network(self.folder / "last.safetensors", module.network, header)
        if self.every:
            save_network(self.folder / f"step_{trainer.global_step}.safetensors", module.network, header)
        if better:
            save_network(self.folder / "best.safetensors", module.network, header)


class Resume(Checkpoint):
    """Writes `resume.ckpt`, all that a run goes on from, whole or not at all: every so many steps, at the end of every
    epoch where epochs are counted, and when it is asked to stop, by SIGTERM or Ctrl-C, behind the step that it is at.

    When that is the last step of an epoch it waits for the validation, which would not be repeated. A run of several
    processes stops at once, as they would wait for each other.

    file: where. every: steps. facts: what the run must be gone on with, kept under "mien".
    """

    def __init__(self, file: Path, every: int, facts: dict[str, Any]):
        self.file, self.every, self.facts, self.saved = file, every, facts, 0
        self.trainer: Trainer | None = None
        self.stop: type[BaseException] | None = None  # what is raised behind this step
        self.alone = threading.current_thread() is threading.main_thread()  # nobody else's handlers are in the way
        self.alone &= signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def interrupt(self, number: int, _: Any) -> None:
        """The handler of SIGINT and SIGTERM: where a step may be half done it waits for its end, and elsewhere, and for
        those who ask twice, it does not."""
        stop = KeyboardInterrupt if number == signal.SIGINT else SIGTERMException
        if self.stop or self.trainer is None or self.trainer.validating or self.trainer.world_size > 1:
            raise stop
        self.stop = stop

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["mien"] = self.facts

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.saved, self.trainer = trainer.global_step, trainer
        if self.alone and trainer.world_size == 1:
            signal.signal(signal.SIGTERM, self.interrupt)  # in place of lightning's, which puts back what was there

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.trainer = None

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if index + 1 < trainer.num_training_batches:
            self._save(trainer, self.stop is not None)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._save(trainer, trainer.max_epochs not in (None, -1) or self.stop is not None)

    def _save(self, trainer: Trainer, now: bool) -> None:
        if (now or trainer.global_step % self.every == 0) and trainer.global_step != self.saved:
            self.saved = trainer.global_step
            trainer.strategy.checkpoint_io = _Whole()
            trainer.save_checkpoint(self.file)
        if self.stop is not None:
            raise self.stop


class _Whole(TorchCheckpointIO):
    """Writes checkpoints as `mien.files.whole` does."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with whole(path) as file:
            torch.save(checkpoint, file)


class Still(Callback):
    """Batch norms stay as they are: they normalise by the statistics that they began with, and do not move them.

    Those of a few faces are of these few alone. parts: by name, what rests in all, dropout and the like as well.
    """

    def __init__(self, parts: Sequence[str] | None = None):
        self.parts = parts

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        if self.parts is not None:
            for name in self.parts:
                module.network.get_submodule(name).eval()
            return
        for part in module.network.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()


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
        self.name, self.bar, self.silent = name, None, False

    def disable(self) -> None:
        self.silent = True

    def enable(self) -> None:
        self.silent = False

    def print(self, *words: Any, sep: str = " ", **_: Any) -> None:
        if not self.silent:
            tqdm.write(sep.join(map(str, words)), file=sys.stderr)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self.bar = tqdm(
            desc=self.name,
            unit="step",
            total=None if total == float("inf") else int(total),
            initial=trainer.global_step,
            disable=self.silent,
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
            shown = ", ".join(f"{name} {value}" for name, value in metrics.items())
            self.print(f"{self.name}, step {trainer.global_step}: {shown}")

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

    count_steps: gives the steps of an epoch. lightning's own count is behind in a run that goes on from an epoch's end.
    """

    def __init__(self, folder: Path, resume: bool, count_steps: Callable[[], int]):
        super().__init__()
        self.file, self.count_steps = folder / "metrics.csv", count_steps
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
        if "epoch" in metrics:
            metrics = metrics | {"epoch": step // self.count_steps()}
        self.rows.setdefault(step, {}).update({"step": step, **metrics})
        columns = dict.fromkeys(name for row in self.rows.values() for name in row)
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(self.rows.values())
        with whole(self.file) as file:
            file.write(text.getvalue().encode())

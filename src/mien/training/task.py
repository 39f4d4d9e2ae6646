"""One training step and one validation step, for any network."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from mien.errors import MienError
from mien.losses import adjust_logits, flip_divergence, output_loss, weighted_cross_entropy
from mien.networks import Network, Normalize
from mien.networks.deploy import to_float
from mien.nn import BatchTransformer
from mien.outputs import Output
from mien.training.augment import Augmentation, cut_mix, mix_up
from mien.training.cache import Cache
from mien.training.sam import SAM
from mien.training.teachers import Teachers

MakeOptimizer = Callable[[Iterable], Optimizer]


Schedule = Literal["cosine", "epoch_cosine", "exponential", "constant"]

POWERS = {"inverse": 1.0, "sqrt": 0.5}
"""By what power of its count a class weighs less."""


def learning_rate(schedule: Schedule, warmup: float, gamma: float, steps: int, epochs: int) -> Callable[[int], float]:
    """The factor of the learning rate at a step of `steps`: a linear rise over the share `warmup`, then the schedule.

    `cosine` falls to 0 at the last step; `epoch_cosine` is `(1 + cos(π e / epochs)) / 2` all through epoch e = 0, 1, …;
    `exponential` is multiplied by `gamma` after each of `epochs`.
    """
    rise = max(1, round(warmup * steps)) if warmup else 0

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if schedule == "cosine":
            done = min(1.0, (step - rise) / max(1, steps - rise))
            return 0.5 * (1 + math.cos(math.pi * done))
        if schedule == "epoch_cosine":
            return 0.5 * (1 + math.cos(math.pi * min(epochs, step * epochs // steps) / epochs))
        if schedule == "exponential":
            return gamma ** (step * epochs // steps)
        return 1.0

    return factor


class Task(LightningModule):
    """Teaches a network to name expressions.

    optimizer: built with the parameters (a callable, such as a partial of AdamW).
    lr_scale: a factor of the learning rate for every parameter whose name begins with the key.
    sam_rho: above 0 wraps the optimizer in SAM with that radius; `sam_adaptive` makes it ASAM.
    decay_bias: without it, parameters of fewer than two dimensions have no weight decay, nor those that the network
        says so of in `no_decay`.
    class_weights: of the cross entropies, which are then weighted means: a number for each class, or from the training
        rows, in inverse proportion to the count of a class or to the root of it, 1 in the mean.
    aux_weight: of the mean `aux_loss` of the network's mixers, or of its pool, that have one. 0.01 is what is published
        for MoH's balance of its heads; for the likeness of ACMIL's branches it is 1.
    augment: changes training images; None leaves them as they are.
    logit_adjustment: above 0, the strength of `mien.losses.adjust_logits`, by the classes of the training rows.
    mixup, cutmix: above 0, training faces and their targets are mixed in pairs: alpha of `mix_up` and of `cut_mix` in
        `mien.training.augment`. With both, each batch is mixed in one of these ways, as a coin says.
    flip_consistency: above 0 every face is learned beside its mirror image, at twice the cost, and the loss has so much
        of `mien.losses.flip_divergence` more.
    heads: outputs that the network has heads for beside its own; each adds its `mien.losses.output_loss`, times its
        weight. binary_weights: "balanced" has the ones of a binary output weigh as much as its zeros.
    teachers, teach: the share `teach` of every target is what the teachers answer to the very image that is learned.
    cache: where there is one, batches are its features, and networks and teachers are not asked about faces.
    seed: with the number of the batch it decides all that is drawn, so that a resumed run draws what it would have.
    """

    def __init__(
        self,
        network: Network,
        preprocess: Mapping[str, Any],
        num_classes: int,
        optimizer: MakeOptimizer,
        schedule: Schedule = "cosine",
        warmup: float = 0.05,
        gamma: float = 0.98,
        lr_scale: Mapping[str, float] | None = None,
        sam_rho: float = 0.0,
        sam_adaptive: bool = False,
        decay_bias: bool = False,
        label_smoothing: float = 0.0,
        aux_weight: float = 0.01,
        class_weights: Literal["none", "inverse", "sqrt"] | list[float] = "none",
        augment: Augmentation | None = None,
        logit_adjustment: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        flip_consistency: float = 0.0,
        heads: Sequence[Output] = (),
        binary_weights: Literal["none", "balanced"] = "none",
        teachers: Teachers | None = None,
        teach: float = 0.5,
        cache: Cache | None = None,
        seed: int = 0,
    ):
        super().__init__()
        self.preprocess, self.cache, self.seed = preprocess, cache, seed
        self.network, self.normalize, self.augment = network, Normalize(preprocess), augment
        self.make_optimizer, self.schedule, self.warmup, self.gamma = optimizer, schedule, warmup, gamma
        self.lr_scale, self.decay_bias, self.label_smoothing = lr_scale or {}, decay_bias, label_smoothing
        self.sam_rho, self.sam_adaptive, self.aux_weight = sam_rho, sam_adaptive, aux_weight
        self.class_weights, self.weights = class_weights, None
        strengths = {
            "mixup": mixup,
            "cutmix": cutmix,
            "flip_consistency": flip_consistency,
            "logit_adjustment": logit_adjustment,
        }
        for name, strength in strengths.items():
            if strength < 0:
                raise MienError(f"--task.{name} is 0 or more, not {strength}")
        if not 0 <= teach <= 1:
            raise MienError(f"--task.teach lies between 0 and 1, not {teach}")
        self.mixup, self.cutmix, self.teachers, self.teach = mixup, cutmix, teachers, teach
        self.flip_consistency, self.logit_adjustment, self.shares = flip_consistency, logit_adjustment, None
        self.heads, self.binary_weights, self.balance = tuple(heads), binary_weights, {}
        if not isinstance(class_weights, str):
            if len(class_weights) != num_classes or not (min(class_weights) >= 0 < max(class_weights)):
                raise MienError(f"--task.class_weights: {num_classes} numbers of 0 or more, not {class_weights}")
            self.weights = torch.tensor(class_weights, dtype=torch.float32)
        self.metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
            },
            prefix="val_",
        )
        self.validation_loss = MeanMetric()

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> tuple[Tensor, ...]:
        """Faces uint8 (B, 112, 112, 3), or cached features (B, width), become what the network reads.

        In training they are augmented, and mixed: once, however often SAM looks at them.
        """
        faces, target, *others = batch
        if self.cache is None:
            images = to_float(faces)
            if not self.training:
                return self.normalize(images).contiguous(memory_format=torch.channels_last), target, *others
        elif not self.training:
            return self.cache.cut(faces)[0], target, *others
        number = (self.seed, self.trainer.fit_loop.total_batch_idx + 1, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(number).generate_state(1)[0]))
        if self.cache is not None:
            features, target = mix_up(faces.float(), target, self.mixup) if self.mixup else (faces, target)
            images, probs = self.cache.cut(features)
            return images, target if probs is None else target.lerp(probs.to(target), self.teach), *others
        if self.augment is None:
            images = self.normalize(images)
        else:
            images = self.augment.after(self.normalize(self.augment(images)))
        if self.mixup and not (self.cutmix and torch.rand(()) < 0.5):
            images, target = mix_up(images, target, self.mixup)
        elif self.cutmix:
            images, target = cut_mix(images, target, self.cutmix)
        return images.contiguous(memory_format=torch.channels_last), target, *others

    def on_fit_start(self) -> None:
        if isinstance(self.class_weights, str) and self.class_weights != "none":
            weights = self.trainer.datamodule.class_weights(POWERS[self.class_weights])
            self.weights = torch.from_numpy(weights).float()
        if self.binary_weights == "balanced":
            names = [output.name for output in self.heads if output.kind == "binary"]
            ratio = self.trainer.datamodule.zeros_to_ones
            self.balance = {name: torch.from_numpy(ratio(name)).float() for name in names}
        if self.logit_adjustment:
            self.shares = torch.from_numpy(self.trainer.datamodule.class_shares()).float()

    def on_train_batch_start(self, batch: tuple[Tensor, ...], index: int) -> None:
        self.network.begin_step(self.trainer.global_step / self.trainer.estimated_stepping_batches)
        if self.teachers is not None and self.cache is None:
            images, target, *_ = batch
            with self.trainer.precision_plugin.train_step_context():
                probs = self.teachers(images)
            target.lerp_(probs.to(target), self.teach)

    def on_validation_epoch_start(self) -> None:
        """All processes judge by the statistics of the first, which are those that are kept."""
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _memories(self) -> dict[str, BatchTransformer]:
        parts = self.network.named_modules()
        return {name: part for name, part in parts if isinstance(part, BatchTransformer) and part.memory}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, part in self._memories().items():
            part.remember()
            checkpoint.setdefault("memories", {})[name] = part.past

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name, part in self._memories().items():
            part.past, part.latest = checkpoint.get("memories", {}).get(name), None

    def training_step(self, batch: tuple[Tensor, ...], index: int) -> Tensor:
        images, target, _, *others = batch
        further = others[0] if others else {}
        if self.flip_consistency:
            images, target = torch.cat([images, images.flip(3)]), torch.cat([target, target])
            further = {name: torch.cat([each, each]) for name, each in further.items()}
        logits, answers = self.network.training_answers(images)
        judged = logits
        if self.shares is not None:
            judged = adjust_logits(logits, self.shares.to(images.device), self.logit_adjustment)
        loss, parts = weighted_cross_entropy(
            judged,
            target,
            self.network.loss_weights,
            None if self.weights is None else self.weights.to(target.device),
            self.label_smoothing,
            further["action_units"].nan_to_num(-1) if "action_units" in logits else None,
            self._over_processes,
            partial=bool(further),
        )
        for output in self.heads:
            said, balance = further[output.name], self.balance.get(output.name)
            balance = None if balance is None else balance.to(said)
            parts[output.name] = output_loss(output, answers[output.name], said, balance, self._over_processes)
            loss = loss + output.weight * parts[output.name]
        aux = [part.aux_loss for part in self.network.modules() if getattr(part, "aux_loss", None) is not None]
        if aux:
            parts["aux"] = torch.stack(aux).mean()
            loss = loss + self.aux_weight * parts["aux"]
        if self.flip_consistency:
            parts["flip"] = flip_divergence(next(iter(logits.values())))
            loss = loss + self.flip_consistency * parts["flip"]
        mean, *by_name = self._over_processes(torch.stack([loss, *parts.values()]).detach())
        named = {f"loss_{name}": part for name, part in zip(parts, by_name, strict=True)}
        self.log_dict(named, on_step=True, on_epoch=False)
        self.log("loss", mean, prog_bar=True)
        return loss

    def _over_processes(self, value: Tensor) -> Tensor:
        """The mean of it over all processes."""
        if self.trainer.world_size == 1:
            return value
        return all_reduce(value.clone()) / self.trainer.world_size  # with its gradient

    def validation_step(self, batch: tuple[Tensor, ...], index: int) -> None:
        images, target, label, *_ = batch
        logits = self.network(images).float()
        self.metrics.update(logits, label)
        self.log_dict(self.metrics, prog_bar=True)
        self.validation_loss.update(nn.functional.cross_entropy(logits, target), len(label))
        self.log("val_loss", self.validation_loss)

    def configure_optimizers(self) -> dict[str, Any]:
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, p in self.network.named_parameters():
            if p.requires_grad:
                scale = next((f for prefix, f in self.lr_scale.items() if name.startswith(prefix)), 1.0)
                decay = self.decay_bias or (p.ndim > 1 and name not in self.network.no_decay)
                groups.setdefault((scale, decay), []).append(p)
        optimizer = self.make_optimizer([{"params": params} for params in groups.values()])
        for group, (scale, decay) in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] *= scale
            if not decay:
                group["weight_decay"] = 0.0
        if self.sam_rho:
            optimizer = SAM(optimizer, self.sam_rho, self.sam_adaptive)
        steps = int(self.trainer.estimated_stepping_batches)
        factor = learning_rate(self.schedule, self.warmup, self.gamma, steps, max(1, self.trainer.max_epochs or 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, factor), "interval": "step"}}

"""What a pretraining step changes: both encoders, the losses with their queues, and the optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from timm.optim import Lars
from torch import nn

from codo.backbones import LEVELS, Backbone, has_branches
from codo.config.pretrain import PretrainConfig
from codo.errors import CodoError
from codo.heads import MLPProjector, RoIPool, box_head
from codo.jobs.pretrain.own_parts import called, checked_box_head, checked_projector
from codo.losses import (
    EMBEDS,
    BoxLoss,
    CellLoss,
    CosineLoss,
    DenseLoss,
    ImageLoss,
    InfoNCELoss,
    InstanceLoss,
    KeyQueue,
    LevelLoss,
    Loss,
    StageLoss,
)
from codo.model import AlignedEncoder, MomentumEncoder, StageEncoder, build_encoder, synchronise_bn
from codo.parts import Parts, make
from codo.runs.seed import integer_seed, torch_generator
from codo.runs.sgd import FusedSGD
from codo.runs.world import World

if TYPE_CHECKING:  # jobs of random weights do not depend on how files are read
    from codo.jobs.pretrain.init import Init

INFO_NCE: dict[str, type[InfoNCELoss]] = {
    "image": ImageLoss,
    "instance": InstanceLoss,
    "level": LevelLoss,
    "stage": StageLoss,
}


class Method(nn.Module):
    """Everything that a step changes besides the optimizer.

    Args:
        config: of the pretraining.
        parts: a user's own, from Python.
        world: the processes that share a batch.
        device: where it will run.
        init: what the encoders begin as; None is random weights.

    Attributes:
        begun_as: how `init` filled the encoders, for records; None without.
        query_encoder: takes the gradient, and is what transfers.
        key_encoder: its moving average.
        losses: name -> loss, with its queues.
        weights: name -> weight.
        bn_groups: of this process.
        untrained: what of backbone, FPN and box head no loss reaches, in words.
        all_used: whether surely every parameter of the encoder takes part; of a user's own parts who knows.
    """

    def __init__(
        self,
        config: PretrainConfig,
        parts: Parts | None = None,
        world: World | None = None,
        device: torch.device | None = None,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        parts, world, device = parts or Parts(), world or World(), device or torch.device("cpu")
        self.bn_groups = groups_of_process(config, world)
        self.jitter_levels = config.jitter.levels
        self.symmetric = config.loss.symmetric
        own = custom_losses(config, parts)
        self.weights = config.loss_weights | {name: weight for name, (_, weight) in own.items()}
        embeds = {
            *("offsets" if name == "box" else name for name in config.loss_weights),
            *(loss.embeds for loss, _ in own.values()),
        }
        if config.mosaic > 1 and {"image", "dense"} & embeds:
            raise CodoError("mosaic: a loss embeds whole images, which hold several samples; leave it at 1")
        with torch.random.fork_rng(devices=[]):  # layers are initialised from torch's global generator
            torch.manual_seed(integer_seed("weights", config.seed))
            encoder = encoder_of(config, parts, embeds)
            losses: dict[str, Loss] = dict(_losses(config))
        self.begun_as: dict[str, Any] | None = init.fill(encoder) if init is not None else None
        if config.model.bn_groups == 1 and world.size > 1:
            synchronise_bn(encoder, device)
        self.query_encoder: AlignedEncoder | StageEncoder = encoder
        self.key_encoder = MomentumEncoder(encoder, config.model.key_momentum, config.model.bn_groups, world)
        whole = set(config.loss.levels) == set(LEVELS)
        if config.alignment:
            every_level = "instance" in embeds or ("level" in embeds and whole)
        else:
            pooled = {"level": config.loss.levels, "stage": config.loss.stage_levels}
            deepest = any(name in embeds and LEVELS[-1] in levels for name, levels in pooled.items())
            every_level = deepest or bool({"image", "dense"} & embeds)
        # A user's loss may have no gradient in a step.
        plain = not own and not parts.names() and not (config.model.projector or config.model.box_head)
        whole_trunk = config.alignment or not has_branches(config.model.backbone)  # C5 alone is not all of that
        self.all_used = every_level and whole_trunk and plain and ":" not in config.model.backbone
        self.untrained = _untrained(config, embeds, {loss.embeds for loss, _ in own.values()})
        self.losses = nn.ModuleDict(losses | {name: loss for name, (loss, _) in own.items()})

    def terms(self) -> Iterator[tuple[str, Loss, float]]:
        """List name, loss and weight of every term."""
        for name, loss in self.losses.items():
            assert isinstance(loss, Loss)
            yield name, loss, self.weights[name]

    @property
    def queues(self) -> int:
        """Count the queues of keys."""
        return sum(isinstance(module, KeyQueue) for module in self.losses.modules())


def groups_of_process(config: PretrainConfig, world: World) -> int:
    """Count the BN groups of one process.

    Raises:
        CodoError: batch or groups do not spread evenly over the processes.
    """
    groups, batch, size = config.model.bn_groups, config.optim.batch_size, world.size
    if batch % size:
        raise CodoError(f"optim.batch_size: {batch} samples do not spread evenly over {size} processes")
    if groups == 1:
        if batch // size % config.mosaic**2:
            m, step = config.mosaic, size * config.mosaic**2
            raise CodoError(
                f"optim.batch_size: {batch} samples do not spread over {size} processes as mosaics of {m} x {m}; "
                f"make it a multiple of {step}"
            )
        return 1
    if groups % size or (groups // size) % config.optim.accumulate:
        step = size * config.optim.accumulate
        raise CodoError(
            f"model.bn_groups: {groups} groups do not spread evenly over {size} processes of {config.optim.accumulate} "
            f"sub-batches; make it a multiple of {step}, or 1 to normalise over the whole batch (SyncBN)"
        )
    return groups // size


def _untrained(config: PretrainConfig, embeds: set[str], own: set[str]) -> list[str]:
    """Name what of backbone, FPN and box head no loss reaches; all losses ask for `embeds`, a user's for `own`."""
    loss, found = config.loss, []
    weighted = [k for k, w in zip(loss.levels, config.level_weights, strict=True) if w or "level" in own]
    if config.alignment and {"instance", "level", "offsets", "cell"} & embeds:  # through the FPN to the whole backbone
        if not {"instance", "level", "offsets"} & embeds:  # a cell is taken before it
            found.append("the box head's fc layer")
        if "instance" in embeds or "level" not in embeds:  # each box from its own level
            return found
        idle = [f"P{k}" for k in LEVELS if k not in loss.levels]  # weight 0 or not, one BN has all that is pooled
        return [f"the FPN's convolutions of {', '.join(idle)}"] if idle else []
    reached = {"level": weighted, "stage": loss.stage_levels, "image": LEVELS, "dense": LEVELS}
    deepest = max(k for name, levels in reached.items() if name in embeds for k in levels)
    if deepest < LEVELS[-1]:
        found.append(f"the backbone beyond C{deepest}")
    return [*found, "the FPN", "the box head"] if config.alignment else found


def encoder_of(config: PretrainConfig, parts: Parts, embeds: set[str]) -> AlignedEncoder | StageEncoder:
    """Build the encoder of a config, for losses that ask for `embeds`."""
    model = config.model
    backbone = Backbone(parts.backbone or model.backbone, model.fpn_channels if config.alignment else None)

    def projector(inputs: int, hidden: int, outputs: int) -> nn.Module:
        if parts.projector is not None:
            return checked_projector(called("projector", parts.projector, inputs, hidden, outputs), inputs, outputs)
        if model.projector is not None:
            return checked_projector(make(model.projector, inputs, hidden, outputs), inputs, outputs)
        return MLPProjector(inputs, hidden, outputs, model.projector_bn)

    def head(channels: int, fc: int) -> nn.Module:
        if parts.box_head is not None:
            return checked_box_head(called("box_head", parts.box_head, channels, fc), channels, fc)
        if model.box_head is not None:
            return checked_box_head(make(model.box_head, channels, fc), channels, fc)
        return box_head(channels, fc, conv_channels=model.box_head_channels, convs=model.box_head_convs)

    return build_encoder(
        backbone,
        embeds=embeds,
        levels=config.loss.levels,
        make_box_head=head,
        box_head_fc=model.box_head_fc,
        make_projector=projector,
        projector_hidden=model.projector_hidden,
        embedding=model.embedding,
        pool=RoIPool(model.roi_sampling_ratio, model.roi_aligned),
        canonical_size=config.roi_canonical_size,
        stage_levels=config.loss.stage_levels,
    )


def _losses(config: PretrainConfig) -> Iterator[tuple[str, Loss]]:
    """Build codo's own losses, with their queues or predictors."""
    loss, width = config.loss, config.model.embedding
    start = torch_generator("queue", config.seed)

    def queues(count: int) -> list[KeyQueue]:
        return [] if loss.negatives == "batch" else [KeyQueue(loss.queue_size, width, start) for _ in range(count)]

    each = {"level": config.level_weights, "stage": (1.0,) * len(loss.stage_levels)}
    for name in config.loss_weights:
        weights = each.get(name, (1.0,))
        if name == "box":
            yield name, BoxLoss()
        elif name == "cell":
            yield name, CellLoss(temperature=loss.temperature)
        elif name == "dense":
            queue = next(iter(queues(1)), None)
            yield name, DenseLoss(queue, temperature=loss.temperature, negatives=loss.negatives)
        elif loss.form == "cosine":
            yield name, CosineLoss(name, MLPProjector(width, loss.predictor_hidden, width, bn=True), weights)
        else:
            yield (
                name,
                INFO_NCE[name](
                    queues(len(weights)), temperature=loss.temperature, negatives=loss.negatives, weights=weights
                ),
            )


def custom_losses(config: PretrainConfig, parts: Parts) -> dict[str, tuple[Loss, float]]:
    """Build a user's own losses: name -> loss and weight.

    Raises:
        CodoError: one is no Loss, or asks for what no encoder gives; or there is none, and codo's own are off.
    """
    found: dict[str, tuple[Loss, float]] = {}

    def add(name: str, loss: object, weight: float) -> None:
        if not isinstance(loss, Loss):
            raise CodoError(f"loss {name}: a codo.Loss is expected, this is a {type(loss).__name__}")
        if getattr(loss, "embeds", None) not in EMBEDS:
            raise CodoError(f"loss {name}: its attribute `embeds` must be one of {', '.join(EMBEDS)}")
        number = 1 + sum(known.partition("-")[0] == name for known in (*config.loss_weights, *found))
        found[name if number == 1 else f"{name}-{number}"] = loss, weight

    for i, part in enumerate(config.loss.custom):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer_seed("custom loss", config.seed, i))
            add(part.name, make(part), part.weight)
    for loss in parts.losses:
        add(type(loss).__name__, loss, 1.0)
    if not found and not config.loss_weights:
        raise CodoError("loss: every weight is 0, nothing would be learnt; add a loss of your own, or leave one on")
    return found


def build_optimizer(config: PretrainConfig, method: Method) -> torch.optim.Optimizer:
    """Build the optimizer over the query encoder and the losses' own parameters.

    Source:
        SGD that decays everything: MoCo, InsLoc. LARS (timm's) and AdamW without decay of norms and biases, which for
        LARS means without its adaptation too: BYOL, timm.
    """
    optim, lr = config.optim, scaled_lr(config)
    parameters = [*method.query_encoder.parameters(), *method.losses.parameters()]
    if optim.name == "sgd":
        return FusedSGD(
            parameters,
            lr=lr,
            momentum=optim.momentum,
            weight_decay=optim.weight_decay,
            nesterov=optim.nesterov and optim.momentum > 0,
        )
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if optim.name == "lars":
        return Lars(groups, lr=lr, momentum=optim.momentum, nesterov=optim.nesterov and optim.momentum > 0)
    return torch.optim.AdamW(groups, lr=lr, betas=(optim.momentum, 0.999), fused=True)


def scaled_lr(config: PretrainConfig) -> float:
    """Compute the learning rate of this batch size."""
    return config.optim.lr * config.optim.batch_size / 256

"""MoCo v2 as lightly publishes it and ours: same weights, images and queue; equal losses and updates."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import nn

from codo.augment import finish_views
from codo.jobs.pretrain.training import Run
from tests.parts import run_of

STEPS = 3


def test_steps_of_moco_v2_equal_lightlys(tiny):
    off = {"background": False, "alignment": False, "hierarchy": False}
    fields = {"model.bn_groups": 1, "loss.negatives": "queue", "optim.nesterov": False, "optim.lr": 6.4}
    config = tiny(**off, **fields, **{"model.key_momentum": 0.9})
    run = run_of(config)
    encoder = run.method.query_encoder

    # lightly's MoCo example: https://docs.lightly.ai/self-supervised-learning/examples/moco.html
    backbone = timm.create_model("resnet10t", num_classes=0)
    head = MoCoProjectionHead(512, 512, 16)
    head.layers = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 16))  # MoCo's own layers have biases
    backbone.load_state_dict(encoder.backbone.body.state_dict())
    head.layers.load_state_dict(encoder.canvas.image.layers.state_dict())
    backbone_momentum, head_momentum = copy.deepcopy(backbone), copy.deepcopy(head)
    deactivate_requires_grad(backbone_momentum)
    deactivate_requires_grad(head_momentum)
    criterion = NTXentLoss(temperature=config.loss.temperature, memory_bank_size=(32, 16))
    queue = run.method.losses["image"].queues[0]
    criterion.memory_bank.bank = queue.keys.clone()
    optimizer = torch.optim.SGD(
        [*backbone.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=config.optim.weight_decay
    )

    batches = run.batches(STEPS)
    for step in range(STEPS):
        batch = next(batches)
        colour = type(batch.views.colour)(*(c.transpose(0, 1).flatten(0, 1) for c in batch.views.colour))
        query_images, key_images = finish_views(batch.views.images.transpose(0, 1).flatten(0, 1), colour).chunk(2)
        ours = run.advance(batch)
        update_momentum(backbone, backbone_momentum, m=0.9)
        update_momentum(head, head_momentum, m=0.9)
        with torch.no_grad():
            key = head_momentum(backbone_momentum(key_images))
        theirs = criterion(head(backbone(query_images)), key)
        optimizer.param_groups[0]["lr"] = run.schedule.lr(step)
        optimizer.zero_grad()
        theirs.backward()
        optimizer.step()
        assert ours.loss == pytest.approx(float(theirs.detach()), rel=1e-5)
        if step == 0:  # later, rounding grows
            pairs = {
                "query body": (encoder.backbone.body, backbone),
                "query head": (encoder.canvas.image.layers, head.layers),
                "key body": (run.method.key_encoder.encoder.backbone.body, backbone_momentum),
                "key head": (run.method.key_encoder.encoder.canvas.image.layers, head_momentum.layers),
            }
            for part, (mine, other) in pairs.items():
                expected = other.state_dict()
                for name, tensor in mine.state_dict().items():
                    assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-6), f"{part} {name}"
    assert torch.allclose(queue.keys, criterion.memory_bank.bank, atol=1e-4)
    assert int(queue.position) == int(criterion.memory_bank.bank_ptr)
    # The comparison would notice: the weights moved far beyond its tolerance.
    first = Run(config, run.dataset).method.query_encoder.canvas.image.layers[0].weight
    assert float((encoder.canvas.image.layers[0].weight - first).abs().max()) > 1e-3

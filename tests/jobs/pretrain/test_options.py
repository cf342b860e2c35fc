"""What changes how a step is computed and not what: sub-batches, compilation, precision; and the optimizers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from codo.errors import CodoError
from codo.jobs.pretrain.build import build_dataset, find_sources
from codo.jobs.pretrain.method import Method, build_optimizer
from codo.jobs.pretrain.training import Run
from tests.parts import run_of


def trained(config, steps=2):
    run = run_of(config)
    batches = run.batches(steps)
    results = [run.advance(next(batches)) for _ in range(steps)]
    return run, results


@pytest.mark.parametrize("negatives", ["queue", "both"])
def test_accumulation_changes_no_number(tiny, negatives):
    fields = {"optim.batch_size": 8, "model.bn_groups": 4, "loss.negatives": negatives, "views": 2}
    (one, whole), (other, parts) = (
        trained(tiny(**fields, **{"optim.accumulate": n, "optim.lr": 0.5}), 1) for n in (1, 4)
    )
    assert parts[0].loss == pytest.approx(whole[0].loss, rel=1e-6)
    assert parts[0].gradient_norm == pytest.approx(whole[0].gradient_norm, rel=1e-4)
    state, accumulated = one.method.state_dict(), other.method.state_dict()
    assert all(torch.allclose(state[n].float(), accumulated[n].float(), rtol=1e-3, atol=1e-5) for n in state)


def test_accumulation_draws_the_same_dropout_in_both_of_its_passes(tiny):
    config, noise = tiny(**{"optim.batch_size": 8, "model.bn_groups": 2, "optim.accumulate": 2}), []
    run = run_of(config)
    run.method.query_encoder.projector.register_forward_pre_hook(lambda *_: noise.append(torch.rand(()).item()))
    run.advance(next(run.batches(1)))
    first, second, *again = noise
    assert again == [first, second]
    assert first != second


def test_accumulation_that_would_change_bn_is_refused(tiny):
    with pytest.raises(CodoError, match=r"optim.accumulate: 3 must divide model.bn_groups \(2\)"):
        tiny(**{"optim.accumulate": 3})


def test_a_clipped_gradient_is_no_longer_than_the_bound(tiny):
    lengths = []
    for bound in (None, 0.01):
        config = tiny(**{"optim.clip_norm": bound, "optim.momentum": 0.0, "optim.weight_decay": 0.0, "optim.lr": 64.0})
        run = run_of(config)
        before = [p.detach().clone() for p in run.method.query_encoder.parameters()]
        result = run.advance(next(run.batches(1)))
        moved = [(p.detach() - b).flatten() for p, b in zip(run.method.query_encoder.parameters(), before, strict=True)]
        lengths.append(float(torch.cat(moved).norm()))
        assert lengths[-1] == pytest.approx(min(result.gradient_norm, bound or 1e9), rel=1e-3)  # lr is 1
    assert lengths[0] > lengths[1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_what_full_precision_learns(tiny, precision):
    full = [r.loss for r in trained(tiny(), 2)[1]]
    run, results = trained(tiny(**{"run.precision": precision}), 2)
    assert [r.loss for r in results] == pytest.approx(full, rel=0.03)
    assert [r.loss for r in results] != full
    assert run.trainer.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in run.method.parameters())


def test_fp16_passes_over_a_step_whose_gradients_overflow_and_scales_less(tiny):
    run, _ = trained(tiny(**{"run.precision": "fp16"}), 1)
    before = {n: p.clone() for n, p in run.method.query_encoder.named_parameters()}
    run.trainer.scaler.update(new_scale=2.0**100)
    run.advance(next(run.batches(2)))
    assert run.trainer.scaler.get_scale() < 2.0**100
    assert all(torch.equal(p, before[n]) for n, p in run.method.query_encoder.named_parameters())
    restored = Run(run.config, run.dataset)
    restored.load(run.state())
    assert restored.trainer.scaler.get_scale() == run.trainer.scaler.get_scale()


def test_a_compiled_encoder_computes_the_same(tiny, monkeypatch):
    # Traced, but run by torch's own kernels: generating code takes a minute (seen to agree too, by hand).
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend="eager"))
    plain = [r.loss for r in trained(tiny(), 2)[1]]
    run, compiled = trained(tiny(**{"run.compile": True}), 2)
    assert [r.loss for r in compiled] == pytest.approx(plain, rel=1e-3)
    assert run.method.query_encoder._compiled_call_impl is not None
    assert not any("_orig_mod" in name for name in run.method.state_dict())


def test_only_the_first_step_compiles(tiny, monkeypatch):
    counting, compile_module = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_module(self, backend=counting))
    config, seen = tiny(**{"run.compile": True}), []
    run = run_of(config)
    batches = run.batches(3)
    for _ in range(3):
        run.advance(next(batches))
        seen.append(counting.frame_count)
    assert seen[0] > 0
    assert seen == [seen[0]] * 3


def test_each_optimizer_takes_its_fields(tiny):
    def built(**fields):
        config = tiny(**{f"optim.{k}": v for k, v in fields.items()})
        return build_optimizer(config, Method(config))

    sgd = built(weight_decay=0.3, momentum=0.8, nesterov=False)
    assert type(sgd).__name__ == "FusedSGD"
    assert (sgd.defaults["weight_decay"], sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.3, 0.8, False)
    for name, kind in {"lars": "Lars", "adamw": "AdamW"}.items():
        optimizer = built(name=name, weight_decay=0.3)
        assert type(optimizer).__name__ == kind
        decayed, kept = optimizer.param_groups
        assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0)
        assert {p.ndim for p in kept["params"]} == {1}
        assert 1 not in {p.ndim for p in decayed["params"]}
    assert built(name="adamw", momentum=0.7).defaults["betas"] == (0.7, 0.999)


def test_lars_takes_the_step_of_its_paper(tiny):
    config = tiny(**{"optim.name": "lars", "optim.lr": 64.0, "optim.weight_decay": 0.1, "optim.momentum": 0.0})
    method = Method(config)
    optimizer, weight = build_optimizer(config, method), method.query_encoder.box_head[-2].weight
    before = weight.detach().double().clone()
    gradient = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.grad = gradient.clone()
    optimizer.step()
    g = gradient.double()
    trust = 0.001 * before.norm() / (g.norm() + 0.1 * before.norm())
    assert torch.allclose(weight.detach().double(), before - trust * (g + 0.1 * before), atol=1e-6)


def test_the_optimizer_trains_a_losses_own_parameters(tiny):
    config = tiny(**{"loss.form": "cosine"})
    method = Method(config)
    held = {id(p) for group in build_optimizer(config, method).param_groups for p in group["params"]}
    assert {id(p) for p in method.losses.parameters()} <= held


def test_scaled_decode_is_what_the_images_come_from(tiny, tmp_path):
    from PIL import Image

    for folder in ("foregrounds", "backgrounds"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            noise = torch.randint(0, 256, (300, 400, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
            Image.fromarray(noise.numpy()).save(tmp_path / folder / f"{i}.jpg")
    named = {f"data.{folder}": str(tmp_path / folder) for folder in ("foregrounds", "backgrounds")}
    configs = [tiny(**named, **{"data.scaled_decode": on}) for on in (True, False)]
    scaled, whole = (build_dataset(c, find_sources(c))[(0, 0)].views for c in configs)
    assert torch.equal(scaled.boxes, whole.boxes)
    assert not torch.equal(scaled.images, whole.images)

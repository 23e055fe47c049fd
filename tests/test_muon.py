"""Muon: orthogonal updates of matrices, AdamW elsewhere; beside torch's own Muon and the exact decomposition."""

import copy

import pytest
import torch
from torch import nn

import davit
from davit.train.muon import MOMENTUM, STEPS, multiplies_bf16, orthogonalise
from davit.train.optimizer import (
    OptimizerConfig,
    count_moments,
    make_optimizer,
    matrices_of,
    parameter_groups,
    set_rate,
)
from runs import make_trainer, tiny_recipe

MUON = OptimizerConfig(kind="muon", learning_rate=3e-3, weight_decay=0.1, betas=(0.9, 0.98))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40), (1, 50, 6), (4, 1, 9)])
def test_singular_values_come_near_one_and_vectors_stay(shape):
    torch.manual_seed(sum(shape))
    matrices = (
        torch.randn(shape, dtype=torch.float64) * torch.logspace(-6, 6, shape[0], dtype=torch.float64)[:, None, None]
    )
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    turned = left.mT @ orthogonalise(matrices) @ right.mT
    diagonal = turned.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(turned, torch.diag_embed(diagonal))
    shares = values / matrices.flatten(1).norm(dim=1)[:, None]
    assert diagonal[shares > 1 / 41].min() > 0.6
    assert diagonal.max() < 1.25
    assert (diagonal > shares)[shares < 0.5].all()  # small ones are enlarged


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_wide_matrices_take_a_shorter_way_to_the_same(steps):
    torch.manual_seed(steps)
    narrow = torch.randn(2, 12, 13, dtype=torch.float64) * torch.logspace(0, -4, 12, dtype=torch.float64)[:, None]
    wide = torch.cat([narrow, torch.zeros(2, 12, 47, dtype=torch.float64)], 2)
    torch.testing.assert_close(orthogonalise(wide, steps)[:, :, :13], orthogonalise(narrow, steps))


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 48, 200)])
def test_products_of_bf16_bring_singular_values_to_the_same_range(shape):
    torch.manual_seed(1)
    matrices = torch.randn(shape)
    turned = orthogonalise(matrices, dtype=torch.bfloat16)
    assert turned.dtype == torch.bfloat16
    exact = orthogonalise(matrices)
    assert (turned - exact).norm() < 0.05 * exact.norm()
    values = torch.linalg.svdvals(turned.float())
    assert values.max() < 1.3
    assert values[:, : shape[1] // 2].min() > 0.6


def test_products_are_of_the_precision_that_is_asked_for():
    model = nn.Linear(24, 40)
    torch.nn.init.normal_(model.weight)
    moved = {}
    for precision in ("fp32", "bf16", "auto"):
        config = OptimizerConfig(kind="muon", learning_rate=3e-3, matrix_precision=precision)
        again = copy.deepcopy(model)
        optimizer = make_optimizer(again, config)
        set_rate(optimizer, config.learning_rate)
        again(torch.ones(3, 24)).square().sum().backward()
        optimizer.step()
        moved[precision] = again.weight.detach() - model.weight.detach()
        assert again.weight.dtype == torch.float32
    assert not moved["bf16"].equal(moved["fp32"])
    torch.testing.assert_close(moved["bf16"], moved["fp32"], rtol=0.1, atol=1e-4)
    fast = multiplies_bf16(torch.device("cpu"))
    assert moved["auto"].equal(moved["bf16" if fast else "fp32"])


def test_zeros_stay_zeros():
    assert orthogonalise(torch.zeros(2, 3, 5)).count_nonzero() == 0


class Parts(nn.Module):
    """One parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 40)
        self.again = nn.Linear(24, 40, bias=False)
        self.mixing = nn.Conv2d(6, 10, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.norm = nn.LayerNorm(8)


def test_matrices_move_as_under_torchs_muon_and_the_rest_as_under_adamw():
    torch.manual_seed(1)
    ours, theirs = Parts(), Parts()
    theirs.load_state_dict(ours.state_dict())
    optimizer = make_optimizer(ours, MUON)
    matrices = matrices_of(ours)
    assert matrices == {"linear.weight", "again.weight", "mixing.weight"}
    flat = {
        name: p.detach().clone().flatten(1).requires_grad_()
        for name, p in theirs.named_parameters()
        if name in matrices
    }
    muon = torch.optim.Muon(
        flat.values(), lr=3e-3, weight_decay=0.1, momentum=MOMENTUM, ns_steps=STEPS, adjust_lr_fn="match_rms_adamw"
    )
    rest = [(name, p) for name, p in theirs.named_parameters() if name not in matrices]
    decays, stays = [p for _, p in rest if p.ndim > 1], [p for _, p in rest if p.ndim == 1]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": stays, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.98))
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    for _ in range(4):
        gradients = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
        for name, p in ours.named_parameters():
            p.grad = gradients[name]
        for name, p in flat.items():
            p.grad = gradients[name].flatten(1)
        for name, p in rest:
            p.grad = gradients[name]
        optimizer.step()
        muon.step()
        adamw.step()
    for name, p in ours.named_parameters():
        theirs_now = flat[name].reshape(p.shape) if name in matrices else dict(rest)[name]
        error = (p - theirs_now).norm() / (p - before[name]).norm()
        assert error < (0.02 if name in matrices else 1e-5), name  # torch's iterates in bf16


def test_rates_of_matrices_follow_matrix_rate_and_layer_decay():
    model = davit.create_model("davit_pico", num_classes=3)
    config = OptimizerConfig(kind="muon", layer_decay=0.5, matrix_rate=4)
    names = {id(p): name for name, p in model.named_parameters()}
    scales = {names[id(p)]: g["scale"] for g in parameter_groups(model, config) for p in g["params"]}
    assert scales["head.bias"] == 1
    assert scales["head.weight"] == 4
    assert scales["backbone.stages.3.blocks.0.window.attn.qkv.weight"] == 2
    assert scales["backbone.stages.3.blocks.0.window.attn.qkv.bias"] == 0.5
    optimizer = make_optimizer(model, config)
    set_rate(optimizer, 0.1)
    assert {group["lr"] for group in optimizer.param_groups} == {0.1 * scale for scale in scales.values()}


def test_numbers_kept_are_those_counted():
    model = davit.create_model("davit_pico", num_classes=3)
    for config in (OptimizerConfig(), OptimizerConfig(kind="muon")):
        optimizer = make_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        kept = sum(v.numel() for state in optimizer.state.values() for key, v in state.items() if key != "step")
        assert kept == count_moments(model, config)


def test_a_rate_of_matrices_needs_muon():
    with pytest.raises(ValueError, match="matrix_rate"):
        OptimizerConfig(matrix_rate=2.0)


def test_weights_without_a_gradient_stay(tmp_path):
    trainer = make_trainer(tiny_recipe(optimizer__kind="muon", optimizer__frozen_stages="2"), tmp_path)
    stage = trainer.model.backbone.stages[1]
    before = {name: p.detach().clone() for name, p in stage.named_parameters()}
    moved = trainer.model.backbone.stages[3].blocks[0].channel.mlp.fc1.weight.detach().clone()
    trainer.total = 2
    trainer.run()
    assert all(torch.equal(p, before[name]) for name, p in stage.named_parameters())
    assert not torch.equal(moved, trainer.model.backbone.stages[3].blocks[0].channel.mlp.fc1.weight)

"""Nearest neighbours and linear classifiers over frozen features."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import davit
from davit.cli import main
from davit.evaluation.probe import LinearProbe, fit_linear, nearest_neighbours
from davit.weights.save import save
from runs import colour_folder


def clouds(count: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors around four middles."""
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(0).normal(size=(4, 10))
    labels = rng.integers(0, 4, count)
    vectors = middles[labels] + rng.normal(size=(count, 10)) * spread
    return torch.from_numpy(vectors.astype(np.float32)), torch.from_numpy(labels)


def test_neighbours_vote_as_in_scikit_learn() -> None:
    train, labels = clouds(300, 1)
    queries, _ = clouds(1100, 2)
    votes = nearest_neighbours(train, labels, queries, 4)
    theirs = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp(-d / 0.07)).fit(train, labels)
    shares = votes.double() / votes.double().sum(1, keepdim=True)
    np.testing.assert_allclose(shares.numpy(), theirs.predict_proba(queries), atol=1e-4)
    assert nearest_neighbours(train[:3], labels[:3], queries, 4).shape == (1100, 4)


@pytest.mark.parametrize("decay", [1e-3, 0.1])
def test_the_linear_classifier_is_scikit_learns_optimum(decay: float) -> None:
    vectors, labels = clouds(200, 3)
    probe = LinearProbe(10, 4)
    probe.fit(vectors, labels, decay)
    x = vectors.double()
    x = (x - x.mean(0)) / (x - x.mean(0)).square().mean().sqrt()
    theirs = LogisticRegression(C=1 / (decay * len(x)), tol=1e-10, max_iter=10_000).fit(x.numpy(), labels)
    np.testing.assert_allclose(probe.weight.numpy(), theirs.coef_, atol=2e-4)
    bias = probe.bias - probe.bias.mean()  # all biases may grow alike
    np.testing.assert_allclose(bias.numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4)


def test_the_penalty_is_the_one_that_serves_images_held_out() -> None:
    """Few samples of many numbers, some labels wrong: a weak penalty learns them by heart."""
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(rng.integers(0, 2, 1200))
    vectors = torch.from_numpy(rng.normal(size=(1200, 100)).astype(np.float32))
    vectors[:, 0] += 2.0 * (2 * labels - 1)
    labels[:200:6] = 1 - labels[:200:6]
    chosen, decay = fit_linear(vectors[:200], labels[:200], 2, range(0, 200, 3))
    weak = LinearProbe(100, 2)
    weak.fit(vectors[:200], labels[:200], 1e-6)
    right = [(probe(vectors[200:]).argmax(1) == labels[200:]).double().mean() for probe in (chosen, weak)]
    assert right[0] > right[1] + 0.02
    assert decay >= 1e-2


def test_evaluate_probes_any_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = colour_folder(tmp_path / "colours")
    torch.manual_seed(0)
    backbone = davit.create_backbone("davit_pico", window=4)
    save(backbone, tmp_path / "backbone.safetensors")
    scores = []
    for backend in ("eager", "native"):
        command = [
            "evaluate",
            str(tmp_path / "backbone.safetensors"),
            "--data",
            str(folder),
            "--probe",
            "both",
            "--json",
        ]
        assert main([*command, "--size", "32", "--backend", backend]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["count"] + report["train_count"] == 24
        assert (report["classes"], report["count"] > 2) == (3, True)
        assert report["embedding"] == 256
        scores.append((report["knn_top1"], report["linear_top1"]))
    assert scores[0] == scores[1]
    assert min(scores[0]) >= 0.9  # colours are told apart by any features
    assert main(["evaluate", str(tmp_path / "backbone.safetensors"), "--data", str(folder), "--probe", "knn"]) == 0
    out = capsys.readouterr().out
    assert "nearest neighbours" in out
    assert "linear" not in out


def test_features_that_are_no_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = colour_folder(tmp_path / "colours")
    model = davit.create_model("davit_pico", num_classes=3)
    torch.nn.init.constant_(model.norm.weight, torch.nan)
    save(model, tmp_path / "damaged.safetensors")
    assert main(["evaluate", str(tmp_path / "damaged.safetensors"), "--data", str(folder), "--probe", "knn"]) == 2
    assert "no numbers" in capsys.readouterr().err

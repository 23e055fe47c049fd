"""Grad-CAM and occlusion: against transcriptions, finite differences and plain loops; and each other, once trained."""

import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from sklearn.datasets import load_digits
from torch import Tensor, nn

from colour_texts import fresh
from davit.explain.grad_cam import grad_cam
from davit.explain.occlusion import OcclusionConfig, cell_side, count_places, occlusion_map
from davit.explain.targets import Target, find_targets, last_map, likeness
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.detector import Detector
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.models.zero_shot import Embedder
from davit.seeding import seed_everything
from foreign import randomise
from runs import TINY
from small_detectors import talkative

CONFIG = DaViTConfig(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), head_width=8, window=4)


def classifier(classes: int = 5) -> Classifier:
    model = Classifier(ClassifierConfig(backbone=CONFIG, num_classes=classes)).double()
    randomise(model)
    model.classes = tuple("abcde"[:classes])
    return model


def segmenter() -> Segmenter:
    head = UPerNetHead(channels=16, auxiliary_channels=8)
    model = Segmenter(SegmenterConfig(backbone=CONFIG, head=head, num_classes=4))
    randomise(model)
    return model


def test_classification_is_the_paper_s_formula() -> None:
    """Equations (1) and (2) written out on maps that are leaves of a graph of their own."""
    model, image = classifier(), torch.randn(3, 97, 131).double()
    (target,) = find_targets(model, image, class_index=3)
    found = grad_cam(model, image, target)
    for stage in range(4):
        with torch.no_grad():
            x = image[None]
            for each in model.backbone.stages[: stage + 1]:
                x = each(x)
        leaf = x.clone().requires_grad_()
        x = leaf
        for each in model.backbone.stages[stage + 1 :]:
            x = each(x)
        pooled = x.sum((1, 2)) / (x.shape[1] * x.shape[2])
        centred = pooled - pooled.mean(-1, keepdim=True)
        normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.weight + model.norm.bias
        (normed @ model.head.weight[3] + model.head.bias[3]).backward()
        wanted = torch.zeros(x.shape[1], x.shape[2])
        maps, gradients = leaf.detach()[0], leaf.grad[0]
        H, W, C = maps.shape
        wanted = torch.zeros(H, W).double()
        for channel in range(C):
            wanted += gradients[..., channel].sum() / (H * W) * maps[..., channel]
        torch.testing.assert_close(found[stage].double(), wanted.clamp_min(0), atol=1e-5, rtol=1e-4)
    assert target.label == "d"
    with torch.no_grad():
        assert target.score == pytest.approx(float(model(image[None]).softmax(-1)[0, 3]), abs=1e-6)


def task(name: str) -> tuple[nn.Module, Tensor, Target]:
    """A model of a task, an image, and what of its answer is neither sure nor unlikely."""
    image = torch.randn(3, 97, 131)
    if name == "likeness":
        embedder = Embedder(fresh()).eval()
        return embedder, image, likeness(embedder, image, torch.randn(16), "a text")
    model = segmenter() if name == "segmenter" else talkative(name)
    targets = find_targets(model, image, count=100)
    return model, image, min(targets, key=lambda target: abs(target.score - 0.6))


def proposals(model: Detector, image: Tensor) -> list[Tensor]:
    padded = F.pad(image, (0, 29, 0, 31))[None]  # 97 x 131 to 128 x 160
    with torch.no_grad():
        offers = model.head.proposals(model.features(padded))
    return model.head.proposals.propose(offers, [(97, 131)], model.head.config.candidates)


def raised(by: float, row: int, column: int, module: nn.Module, args: object, x: Tensor) -> Tensor:
    return x + by * x[:, row : row + 1, column : column + 1]


@pytest.mark.parametrize("name", ["mask_rcnn", "retinanet", "segmenter", "likeness"])
def test_every_task_is_a_finite_difference(name: str) -> None:
    """Raising all positions by the vector of one of them changes the target by that one's value before the ReLU."""
    model, image, target = task(name)
    maps = grad_cam(model, image, target)
    assert maps[target.stage].any()
    if name == "mask_rcnn":  # regions are taken as given, as in training
        model.head.proposals.propose = partial(lambda regions, *rest: regions, proposals(model, image))
    for stage in {target.stage, 1, 3}:
        largest = maps[stage].max()
        module = list(model.backbone.stages)[stage]
        for place in range(0, maps[stage].numel(), maps[stage].numel() // 5):
            row, column = divmod(place, maps[stage].shape[1])
            values: list[Tensor] = []
            for by in (2e-3, -2e-3):
                handle = module.register_forward_hook(partial(raised, by, row, column))
                with torch.no_grad():
                    values.append(target.measure(image[None])[0])
                handle.remove()
            wanted = (values[0] - values[1]) / 4e-3 / maps[stage].numel()
            assert float(maps[stage][row, column]) == pytest.approx(max(float(wanted), 0), abs=0.05 * float(largest))


def test_the_answer_is_what_is_explained() -> None:
    model, image, _ = task("retinanet")
    target = find_targets(model, image)[0]
    with torch.no_grad():
        output = model(image[None])[0]
    assert target.score == pytest.approx(float(output.scores[0]))
    assert target.box == pytest.approx(tuple(output.boxes[0].tolist()))
    with torch.no_grad():
        assert float(target.measure(image[None])[0]) == pytest.approx(target.score)
    again = find_targets(model, image, class_index=target.index, count=3)
    assert {each.index for each in again} == {target.index}
    assert [each.score for each in again] == sorted((each.score for each in again), reverse=True)
    model, image, target = task("segmenter")
    with torch.no_grad():
        chosen = model(image[None]).logits[0].argmax(0)
    assert target.score == pytest.approx(float((chosen == target.index).double().mean()))
    counts = sorted((int((chosen == index).sum()) for index in range(4)), reverse=True)
    shares = [count / chosen.numel() for count in counts if count]
    assert [each.score for each in find_targets(model, image, count=9)] == pytest.approx(shares)


def test_what_cannot_be_explained_is_refused() -> None:
    model, image = classifier(), torch.randn(3, 64, 64)
    with pytest.raises(ValueError, match="classes 0 to 4, and no class 5"):
        find_targets(model, image, class_index=5)
    (target,) = find_targets(model, image.double())
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        grad_cam(model.train(), image.double(), target)
    detector = talkative("retinanet")
    detector.head.classify.bias.data[1::3] = -1e3  # nothing is of class 1
    with pytest.raises(ValueError, match="no 1 was found in this image, only"):
        find_targets(detector, torch.randn(3, 97, 131), class_index=1)
    assert find_targets(DaViT(CONFIG).eval(), image) == []
    assert find_targets(fresh(), image) == []


def test_an_object_that_is_gone_speaks_nowhere() -> None:
    model, image, target = task("retinanet")
    elsewhere = find_targets(model, image, class_index=target.index, count=100)[-1]
    model.head.config = replace(model.head.config, score_threshold=1.0)
    with torch.no_grad():
        assert float(elsewhere.measure(image[None])[0]) == 0
    maps = grad_cam(model, image, target)
    assert [tuple(each.shape) for each in maps] == [(32, 40), (16, 20), (8, 10), (4, 5)]  # padded to 128 x 160
    assert not any(each.any() for each in maps)


def test_the_map_that_is_shown_has_places() -> None:
    assert [last_map(torch.zeros(3, side, 224)) for side in (224, 128, 97, 96, 64, 24, 16, 7, 1)] == [
        3, 3, 3, 2, 2, 0, 0, 0, 0,
    ]  # fmt: skip


def test_the_model_is_left_alone_and_others_may_use_it() -> None:
    """While one thread explains, another predicts in inference mode: neither sees the other's pictures."""
    model = classifier().float()
    mine, theirs = torch.randn(3, 64, 64), torch.randn(4, 3, 64, 64)
    (target,) = find_targets(model, mine, class_index=1)
    wanted = grad_cam(model, mine, target)
    with torch.inference_mode():
        answer = model(theirs)
    wrong: list[str] = []
    stop = threading.Event()

    def predict() -> None:
        while not stop.is_set():
            with torch.inference_mode():
                if not torch.equal(model(theirs), answer):
                    wrong.append("another answer")

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        for _ in range(20):
            for got, expected in zip(grad_cam(model, mine, target), wanted, strict=True):
                torch.testing.assert_close(got, expected)
    finally:
        stop.set()
        thread.join()
    assert wrong == []
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    with torch.inference_mode():  # a caller's own mode does not matter
        torch.testing.assert_close(grad_cam(model, mine + 0, target)[3], wanted[3])


def test_occlusion_is_the_mean_loss_of_the_patches_that_cover() -> None:
    model, image = classifier().float(), torch.randn(3, 25, 35)
    (target,) = find_targets(model, image)
    config = OcclusionConfig(patches=3, overlap=2, batch_size=7)
    told: list[int] = []
    found = occlusion_map(model, image, target, config, told.append)
    step = cell_side(25, 35, config)
    assert (step, tuple(found.shape)) == (6, (5, 6))
    assert sum(told) == count_places(25, 35, config) == 6 * 7
    losses: dict[tuple[int, int], list[float]] = {}
    with torch.no_grad():
        whole = float(model(image[None])[0, target.index])
        for row in range(-1, 5):
            for column in range(-1, 6):
                covered = image.clone()
                for y in range(25):
                    for x in range(35):
                        if row * 6 <= y < row * 6 + 12 and column * 6 <= x < column * 6 + 12:
                            covered[:, y, x] = image.mean((1, 2))
                loss = whole - float(model(covered[None])[0, target.index])
                for cell in ((row + i, column + j) for i in (0, 1) for j in (0, 1)):
                    losses.setdefault(cell, []).append(loss)
    for row in range(5):
        for column in range(6):
            assert len(losses[row, column]) == 4
            assert float(found[row, column]) == pytest.approx(np.mean(losses[row, column]), abs=1e-4)
    with pytest.raises(ValueError, match="patches must be at least 1"):
        OcclusionConfig(patches=0)


CELLS = 4  # a digit lies in one of 4 x 4 places of 16 pixels


def scattered(digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Digits in faint noise, and the place of each."""
    images = torch.rand(len(digits), 1, 64, 64, generator=generator) * 0.2
    places = torch.randint(0, CELLS**2, (len(digits),), generator=generator)
    for image, digit, place in zip(images, digits, places.tolist(), strict=True):
        top, left = place // CELLS * 16, place % CELLS * 16
        image[:, top : top + 16, left : left + 16] += digit
    return (images - 0.3) / 0.3, places


@pytest.mark.slow
def test_occlusion_agrees_with_grad_cam_on_a_trained_model() -> None:
    """Both point at the same one of 16 places, which is where the digit lies, far more often than chance."""
    seed_everything(0)
    source = load_digits()
    kept = source.target < 4
    digits = torch.tensor(source.images[kept] / 16, dtype=torch.float32)
    digits, labels = F.interpolate(digits[:, None], (16, 16), mode="bilinear"), torch.tensor(source.target[kept])
    generator = torch.Generator().manual_seed(0)
    backbone = TINY.override(drop_path=0.0, window=4)
    model = Classifier(ClassifierConfig(backbone=backbone, num_classes=4))
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=0.05)
    steps, unseen, shown = 150, len(digits) - 64, 48
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        chosen = torch.randint(0, unseen, (32,), generator=generator)
        loss = F.cross_entropy(model.train()(scattered(digits[chosen], generator)[0]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    images, places = scattered(digits[unseen:], generator)
    with torch.no_grad():
        right = (model(images).argmax(1) == labels[unseen:]).double().mean()
    assert right > 0.6, "the model did not learn"
    agree = at_digit = 0
    for image, label, place in list(zip(images, labels[unseen:], places, strict=True))[:shown]:
        (target,) = find_targets(model, image, class_index=int(label))
        cam = F.adaptive_avg_pool2d(grad_cam(model, image, target)[0][None], CELLS)[0]
        lost = occlusion_map(model, image, target, OcclusionConfig(patches=CELLS, overlap=1))
        agree += int(cam.argmax() == lost.argmax() and cam.any())
        at_digit += int(cam.argmax() == place and cam.any())
    for hits in (agree, at_digit):
        assert binomtest(hits, shown, 1 / CELLS**2, alternative="greater").pvalue < 1e-6, (agree, at_digit)

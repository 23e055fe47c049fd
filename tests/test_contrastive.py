"""Image-text pre-training: the loss, the text tower, captions, retrieval, and the model's file."""

import os
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.multiprocessing as mp
from open_clip.transformer import TextTransformer

import davit
from davit.cli import main
from davit.data.captions import CaptionedScenes, Pairs, label_of, named
from davit.data.loader import Sample, collate
from davit.evaluation.retrieval import RetrievalMetric
from davit.models.clip import LARGEST_SCALE, ImageTextModel, ImageTextOutput, LogitScale
from davit.models.clip_config import ImageTextConfig, ImageTextHead, TextConfig
from davit.models.text import TextTower
from davit.tasks.contrastive import unicl_loss
from davit.tokens import tokenize
from davit.weights.save import save
from runs import TINY

TEXT = TextConfig(context=20, width=64, heads=4, layers=3)


def vectors(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    drawn = torch.nn.functional.normalize(torch.randn(2, count, 12, dtype=torch.float64), dim=-1)
    return drawn[0].clone().requires_grad_(), drawn[1].clone().requires_grad_()


def plain_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """UniCL's equations, a pair at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for a, b in ((images, texts), (texts, images)):
        for i in range(len(labels)):
            logs = (scale * (b @ a[i])).log_softmax(0)
            positives = [j for j in range(len(labels)) if labels[j] == labels[i]]
            total = total - sum(logs[j] for j in positives) / len(positives)
    return total / (2 * len(labels))


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_the_loss_and_its_gradients_are_the_papers(rows: int) -> None:
    labels = torch.tensor([4, 7, 4, 9, 7, 4, 1])
    found = []
    for loss in (lambda *x: unicl_loss(*x, rows=rows), plain_loss):
        images, texts = vectors(7)
        scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
        value = loss(images, texts, scale, labels)
        found.append((value, *torch.autograd.grad(value, (images, texts, scale))))
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_unique_labels_give_open_clips_loss() -> None:
    images, texts = (x.detach().float() for x in vectors(9))
    ours = unicl_loss(images, texts, torch.tensor(14.0), torch.arange(9))
    torch.testing.assert_close(ours, open_clip.loss.ClipLoss()(images, texts, torch.tensor(14.0)))


def test_class_prompts_give_supervised_contrastive_learning() -> None:
    """Texts alike within a class: for images it is cross-entropy among classes, each weighed by its frequency."""
    images, texts = (x.detach() for x in vectors(8))
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    prompts = texts[:3]
    logits = 5.0 * images @ prompts.T
    counts = torch.bincount(labels).double()
    to_text = -(logits.gather(1, labels[:, None])[:, 0] - (logits.exp() * counts).sum(1).log()).mean()
    back = unicl_loss(images, prompts[labels], torch.tensor(5.0, dtype=torch.float64), labels)
    rows = (5.0 * prompts[labels] @ images.T).log_softmax(1)
    same = (labels[:, None] == labels).double()
    to_image = -((rows * same).sum(1) / same.sum(1)).mean()
    torch.testing.assert_close(back, (to_text + to_image) / 2)


def test_a_number_that_is_none_reaches_the_loss_and_no_pair_is_refused() -> None:
    images, texts = (x.detach() for x in vectors(4))
    images[2, 3] = torch.nan
    assert unicl_loss(images, texts, torch.tensor(5.0), torch.arange(4)).isnan()
    with pytest.raises(ValueError, match="at least one pair"):
        unicl_loss(images[:0], texts[:0], torch.tensor(5.0), torch.arange(0))


def _share(rank: int, sizes: tuple[int, ...], folder: str) -> None:
    """One process's share of a batch."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=len(sizes))
    images, texts = vectors(sum(sizes))
    own = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    labels = torch.arange(sum(sizes)) % 4
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    loss = unicl_loss(images[own], texts[own], scale, labels[own], rows=2)
    loss.backward()
    torch.save((loss.detach(), images.grad[own], texts.grad[own], scale.grad), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("sizes", [(3, 3), (5, 2), (4, 0)])
def test_processes_share_the_loss_exactly(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """The mean over processes of losses and gradients is that of the whole batch, also where one has no pair."""
    mp.spawn(_share, (sizes, str(tmp_path)), nprocs=len(sizes))
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(len(sizes))]
    images, texts = vectors(sum(sizes))
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    loss = plain_loss(images, texts, scale, torch.arange(sum(sizes)) % 4)
    loss.backward()
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).mean(), loss.detach())
    torch.testing.assert_close(torch.cat([part[1] for part in parts]) / len(sizes), images.grad)
    torch.testing.assert_close(torch.cat([part[2] for part in parts]) / len(sizes), texts.grad)
    torch.testing.assert_close(torch.stack([part[3] for part in parts]).mean(), scale.grad)


def test_the_scale_is_kept_between_1_and_100_and_can_return() -> None:
    scale = LogitScale().train()
    assert float(scale().detach()) == pytest.approx(1 / 0.07)
    for value, limit in ((9.0, 100.0), (-3.0, 1.0)):
        torch.nn.init.constant_(scale.logarithm, value)
        found = scale()
        assert float(found.detach()) == pytest.approx(limit)
        (gradient,) = torch.autograd.grad(found, scale.logarithm)
        assert float(gradient) == pytest.approx(limit)
    torch.nn.init.constant_(scale.logarithm, LARGEST_SCALE + 1)
    assert float(scale.eval()().detach()) == pytest.approx(100.0)


@pytest.mark.parametrize("quick", [False, True])
def test_the_text_tower_is_open_clips(quick: bool) -> None:
    torch.manual_seed(0)
    act = {"act_layer": open_clip.transformer.QuickGELU} if quick else {}
    theirs = TextTransformer(context_length=20, width=64, heads=4, layers=3, output_dim=32, **act).eval()
    ours = TextTower(TextConfig(context=20, width=64, heads=4, layers=3, quick_gelu=quick), 32).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    texts = ["a cat", "", "a photo of a very long dog " * 9]
    tokens = tokenize(texts, 20)
    torch.testing.assert_close(tokens, open_clip.tokenizer.SimpleTokenizer()(texts, context_length=20))
    torch.testing.assert_close(ours(tokens), theirs(tokens), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="reads 20 tokens, got 21"):
        ours(torch.ones(1, 21, dtype=torch.int64))


def test_the_text_tower_begins_as_open_clips_does() -> None:
    torch.manual_seed(0)
    theirs, ours = TextTransformer(context_length=20, width=64, heads=4, layers=3, output_dim=32), TextTower(TEXT, 32)
    for name, value in theirs.state_dict().items():
        drawn = ours.state_dict()[name]
        if value.ndim > 1:
            assert float(drawn.std()) == pytest.approx(float(value.std()), rel=0.1), name
        elif not name.endswith(("c_fc.bias", "c_proj.bias")):
            assert torch.equal(drawn, value), name


def test_a_model_comes_back_from_its_file_and_other_verbs_refuse_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ImageTextConfig(backbone=TINY.override(in_channels=3), head=ImageTextHead(embedding=16, text=TEXT))
    model = ImageTextModel(config).eval()
    save(model, tmp_path / "model.safetensors")
    again = davit.load(tmp_path / "model.safetensors")
    assert isinstance(again, ImageTextModel)
    images, tokens = torch.randn(2, 3, 50, 37), tokenize(["a three", "a seven above an eight"], 20)
    for ours, theirs in zip(model(images, tokens), again(images, tokens), strict=True):
        assert torch.equal(ours, theirs)
    assert model(images).texts is None
    for command in (
        ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "other.pth"), "--to", "official"],
        ["export", str(tmp_path / "model.safetensors"), str(tmp_path / "model.onnx")],
    ):
        assert main(command) == 2
        assert re.search("text tower|embed_texts", capsys.readouterr().err)
    assert model(images).images.norm(dim=1).tolist() == pytest.approx([1.0, 1.0])


def test_captions_tell_what_is_there() -> None:
    """Every digit is named once; a place that is told is where the digit is."""
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    scenes = CaptionedScenes("test", 60, seed=3)
    kinds = set()
    for index in range(len(scenes)):
        words = scenes.caption(index).replace(",", "").split()
        placed = scenes.scenes.placed(index)
        assert sorted(word for word in words if word in names) == sorted(names[d.digit] for d in placed)
        assert scenes.caption(index) == CaptionedScenes("test", 60, seed=3).caption(index)
        if len(placed) == 2 and ("above" in words or "below" in words):
            first, second = (names.index(word) for word in words if word in names)
            if first == second:
                continue
            middle = {d.digit: d.box[1] + d.box[3] for d in placed}
            assert (middle[first] < middle[second]) == ("above" in words)
        kinds.add(len(placed))
    assert kinds == {1, 2, 3, 4}


def test_first_scenes_are_small_with_digits_as_large_as_in_the_others() -> None:
    usual = CaptionedScenes("train", 200, size=64)
    begun = CaptionedScenes("train", 200, size=64, first=150, first_size=32)
    boxes = []
    for index in range(150):
        picture, told = begun[index]
        assert picture.size == (32, 32)
        assert told.text in {named(digit) for digit in range(10)}
        boxes += [digit.box for digit in begun._drawn(index).placed(index)]
    heights = [bottom - top for _, top, _, bottom in boxes]
    assert len(heights) == 150
    others = [d.box[3] - d.box[1] for i in range(150) for d in usual.scenes.placed(i)]
    assert 0.85 < np.mean(heights) / np.mean(others) < 1.05
    for index in range(150, 160):
        assert begun.caption(index) == usual.caption(index)
        assert begun[index][0] == usual[index][0]
    half = CaptionedScenes("train", 40, size=96, most=8, first=40, first_size=48)
    assert {len(half._drawn(i).placed(i)) for i in range(40)} == {1, 2}


def test_padding_of_texts_is_left_out_of_a_batch_and_changes_no_vector() -> None:
    tower = TextTower(TextConfig(context=77, width=32, heads=2, layers=2), 16).eval()
    pairs = Pairs(CaptionedScenes("test", 20, size=64), 77)  # type: ignore[arg-type]
    samples = [Sample(pixels=torch.zeros(3, 8, 8), target=pairs[i][1], index=i) for i in range(20)]
    for some in (samples, [s for s in samples if pairs.caption(s.index).count(" ") == 1]):
        texts = collate(some).texts
        whole = torch.stack([sample.target.tokens for sample in some])
        ends = whole.argmax(1)
        assert texts.shape[1] == -(-int(ends.max() + 1) // 8) * 8 < 77
        with torch.no_grad():
            torch.testing.assert_close(tower(texts), tower(whole), rtol=1e-5, atol=1e-6)
    assert texts.shape[1] == 8


def test_equal_captions_share_a_label() -> None:
    assert label_of("A cat ") == label_of("a cat") != label_of("a dog")
    pairs = Pairs(CaptionedScenes("train", 3), 12)
    _, pair = pairs[1]
    assert pair.tokens.shape == (12,)
    assert pair.label == label_of(pairs.caption(1))


def test_recall_counts_as_one_would_by_hand() -> None:
    rng = np.random.default_rng(1)
    images, texts = (torch.from_numpy(rng.normal(size=(30, 6)).astype(np.float32)) for _ in range(2))
    labels = torch.from_numpy(rng.integers(0, 12, 30))
    metric = RetrievalMetric()
    for part in (slice(0, 13), slice(13, 30)):
        targets = torch.stack([labels[part], torch.arange(30)[part]], 1)
        metric.update(ImageTextOutput(images[part], texts[part], torch.tensor(1.0)), targets)
    scores = metric.compute()
    for name, queries, others in (("image_to_text", images, texts), ("text_to_image", texts, images)):
        for k in (1, 5, 10):
            hits = 0
            for i in range(30):
                order = sorted(range(30), key=lambda j, i=i, q=queries, o=others: -float(q[i] @ o[j]))
                first_own = [bool(labels[j] == labels[i]) for j in order].index(True)
                hits += first_own < k
            assert scores[f"{name}_r{k}"] == pytest.approx(hits / 30)
    assert scores["count"] == 30


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_a_model_that_sees_no_difference_finds_nothing(value: float) -> None:
    metric = RetrievalMetric()
    outputs = ImageTextOutput(torch.full((20, 4), value), torch.ones(20, 4), torch.tensor(1.0))
    metric.update(outputs, torch.arange(20)[:, None].expand(-1, 2))
    scores = metric.compute()
    assert scores["image_to_text_r10"] == scores["text_to_image_r10"] == 0.0

"""`davit evaluate` of a segmenter at several sizes, mirrored and through windows."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import davit
from davit.cli import main
from davit.data.scenes import Scenes
from davit.evaluation.sliding import multi_scale, sliding
from davit.evaluation.views import Views
from davit.models.config import DaViTConfig
from davit.models.segmenter_config import SegmenterConfig, UPerNetHead
from davit.models.upernet import Segmenter
from davit.preprocessing import Preprocessing
from davit.weights.save import save

SIZES = ((96, 80), (64, 96), (96, 80), (90, 90))  # height and width
CONFIG = DaViTConfig(widths=(32, 64, 96, 128), depths=(1, 1, 1, 1))
USUAL = Preprocessing(size=(64, 128), fit="within", interpolation="bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
Say = Callable[..., dict]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # for images so small, a second one mostly waits


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of digit scenes, in several sizes."""
    root = tmp_path_factory.mktemp("masks")
    scenes = Scenes("test", len(SIZES), "segmentation", size=96)
    for folder in ("val", "val_masks"):
        (root / folder).mkdir()
    for index, (height, width) in enumerate(SIZES):
        picture, classes = scenes[index]
        picture.crop((0, 0, width, height)).save(root / "val" / f"{index}.png")
        Image.fromarray(classes[:height, :width]).save(root / "val_masks" / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(scenes.classes) + "\n")
    return root


@pytest.fixture(scope="module")
def segmenter(masks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fresh weights, which say different things at different sizes and places."""
    torch.manual_seed(3)
    head = UPerNetHead(channels=16, auxiliary_channels=8)
    classes = tuple((masks / "classes.txt").read_text().split("\n")[:-1])
    model = Segmenter(SegmenterConfig(backbone=CONFIG, head=head, num_classes=len(classes)))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.preprocessing, model.classes = USUAL, classes
    path = tmp_path_factory.mktemp("model") / "segmenter.safetensors"
    save(model, path)
    return path


@pytest.fixture
def say(segmenter: Path, masks: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    def said(*words: str) -> dict:
        assert main(["evaluate", str(segmenter), "--data", str(masks), "--workers", "0", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    return said


def scores_of(found: Callable[[Tensor, int], np.ndarray], masks: Path, segmenter: Path) -> dict[str, float]:
    """Scores from one confusion matrix, counted pixel by pixel."""
    counts = np.zeros((11, 11))
    for index in range(len(SIZES)):
        picture = np.asarray(Image.open(masks / "val" / f"{index}.png").convert("RGB"), np.float32)
        pixels = torch.from_numpy((picture / 255 - 0.5) / 0.5).permute(2, 0, 1)[None]
        truth = np.asarray(Image.open(masks / "val_masks" / f"{index}.png"))
        np.add.at(counts, (truth, found(pixels, index)), 1)
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    return {"miou": float((hits[union > 0] / union[union > 0]).mean()), "aacc": float(hits.sum() / counts.sum())}


def averaged(segmenter: Path, ratios: Sequence[float], flip: bool) -> Callable[[Tensor, int], np.ndarray]:
    """The official multi-scale test, written down plainly."""
    model = davit.load(segmenter).eval()

    def found(pixels: Tensor, index: int) -> np.ndarray:
        height, width = SIZES[index]
        usual = min(64 / min(height, width), 128 / max(height, width))
        shares = []
        for ratio in ratios:
            size = [int(side * usual * ratio + 0.5) for side in (height, width)]
            view = F.interpolate(pixels, size, mode="bilinear", antialias=True)
            for mirrored in (False, True) if flip else (False,):
                with torch.no_grad():
                    logits = model(view.flip(-1) if mirrored else view).logits
                each = F.interpolate(logits, scale_factor=4, mode="bilinear")[..., : size[0], : size[1]]
                large = F.interpolate(each, (height, width), mode="bilinear")
                shares.append(large.softmax(1).flip(-1) if mirrored else large.softmax(1))
        return torch.stack(shares).mean(0)[0].argmax(0).numpy()

    return found


@pytest.mark.parametrize(
    ("words", "ratios", "flip"),
    [
        (("--scales", "0.5,1,1.75"), (0.5, 1, 1.75), False),
        (("--scales", "0.75,1.25", "--flip"), (0.75, 1.25), True),
        (("--flip",), (1.0,), True),
    ],
)
def test_several_views_are_averaged(
    words: tuple[str, ...], ratios: tuple[float, ...], flip: bool, segmenter: Path, masks: Path, say: Say
) -> None:
    report = say(*words)
    wanted = scores_of(averaged(segmenter, ratios, flip), masks, segmenter)
    assert {key: report[key] for key in wanted} == pytest.approx(wanted, abs=2e-4)  # two pixels may fall either way
    assert report["views"] == {"scales": list(ratios), "flip": flip, "window": None, "stride": None}
    assert report["count"] == len(SIZES)


def test_one_view_differs_from_several_and_says_so(say: Say) -> None:
    plain = say()
    assert plain["views"] == {"scales": [1.0], "flip": False, "window": None, "stride": None}
    assert say("--scales", "1", "--batch-size", "1")["miou"] == plain["miou"]
    assert say("--scales", "0.5,1.5")["miou"] != plain["miou"]


def test_a_window_as_large_as_the_image_changes_nothing(say: Say) -> None:
    whole, windowed = say(), say("--window", "96x128")
    assert windowed["per_class"] == whole["per_class"]
    assert windowed["views"] == {"scales": [1.0], "flip": False, "window": [96, 128], "stride": [64, 85]}


def test_windows_are_slid_over_the_resized_picture(segmenter: Path, masks: Path, say: Say) -> None:
    model = davit.load(segmenter).eval()

    def found(pixels: Tensor, index: int) -> np.ndarray:
        image = USUAL(Image.open(masks / "val" / f"{index}.png").convert("RGB"))[None]
        height, width = image.shape[2:]
        tops, lefts = ({*range(0, side - 32, 20), side - 32} for side in (height, width))
        total, count = torch.zeros(11, height, width), torch.zeros(height, width)
        for top in tops:
            for left in lefts:
                with torch.no_grad():
                    part = model(image[..., top : top + 32, left : left + 32]).logits
                total[:, top : top + 32, left : left + 32] += F.interpolate(part, (32, 32), mode="bilinear")[0]
                count[top : top + 32, left : left + 32] += 1
        return F.interpolate((total / count)[None], SIZES[index], mode="bilinear")[0].argmax(0).numpy()

    report = say("--window", "32", "--stride", "20")
    wanted = scores_of(found, masks, segmenter)
    assert {key: report[key] for key in wanted} == pytest.approx(wanted, abs=2e-4)
    assert report["views"]["window"] == [32, 32]
    assert report["views"]["stride"] == [20, 20]


def test_windows_and_sizes_go_together(segmenter: Path) -> None:
    model = davit.load(segmenter).eval()
    images = torch.randn(1, 3, 80, 96)
    views = Views(scales=(0.75, 1.0), flip=True, window=(48, 40))

    def logits(view: Tensor) -> Tensor:
        return model(view).logits

    with torch.no_grad():
        found = views.of(logits, USUAL)(images)
        wanted = multi_scale(
            lambda view: sliding(logits, view, (48, 40), (32, 26)), images, 0.8, (0.75, 1.0), flip=True
        )
    assert torch.equal(found, wanted)


def test_pictures_of_several_views_keep_their_size() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    own = Views(flip=True).prepared(USUAL)
    assert own.output_size(50, 70) == (50, 70)
    assert own(picture).shape == (3, 50, 70)
    assert torch.equal(own(picture), USUAL.tensor(picture))
    assert Views(window=(8, 8)).prepared(USUAL) is USUAL


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scales", "a"), "such as 0.5,0.75,1, got 'a'"),
        (("--scales", "0,1"), "scales must be above 0"),
        (("--window", "x"), "such as 512x1024, or 512, got 'x'"),
        (("--window", "32", "--stride", "33"), "stride must lie in 1 to the side of a window"),
        (("--stride", "33"), "--stride goes with --window"),
    ],
)
def test_wrong_views_get_one_line(
    words: tuple[str, ...], message: str, segmenter: Path, masks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(segmenter), "--data", str(masks), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_other_models_have_one_view(tmp_path: Path, masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = davit.create_model("davit_pico", num_classes=2)
    model.preprocessing = Preprocessing.imagenet(32)
    save(model, tmp_path / "classifier.safetensors")
    for words in (("--flip",), ("--window", "32")):
        assert main(["evaluate", str(tmp_path / "classifier.safetensors"), "--data", str(masks), *words]) == 2
        assert "are for segmenters, and this is a classifier" in capsys.readouterr().err
    with pytest.raises(ValueError, match="keep their shape, this one has them crop"):
        Views(flip=True).prepared(Preprocessing.imagenet(32))

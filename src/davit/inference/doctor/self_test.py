"""One image through a small model with fresh weights, against the same model in float64."""

import copy
import random
import tempfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import torch
from torch import Tensor, nn

from davit.inference.backends import BackendName
from davit.inference.backends.native.build import NativeError
from davit.inference.doctor.check import Check, failed
from davit.inference.predictor import Predictor
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.preprocessing import Preprocessing
from davit.structures import Classification

CLASSES, SEED = 10, 0
ALLOWED = 1e-4  # of scores, and of gradients over the largest; float32 keeps about 1e-6


def check_model() -> Iterator[Check]:
    """Prediction by each backend, training, detection's operators, and files."""
    model = small_model()
    picture = _picture()
    scores = _exact_scores(model, picture)
    remedy = "the numbers of this PyTorch are wrong here: reinstall torch and torchvision together (pytorch.org)"
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    for device in devices:
        yield _answer(model, picture, scores, "eager", device, remedy)
    yield _answer(model, picture, scores, "native", "cpu", "compute with eager, and report compiler and processor")
    for name, check in (("training", _gradients), ("operators", _operators), ("files", _files)):
        try:
            yield check(model)
        except Exception as error:
            yield failed(name, error, remedy)


def small_model() -> Classifier:
    """A classifier of both attentions whose windows do not fit its maps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        config = DaViTConfig(widths=(32, 64, 32, 64), depths=(1, 1, 1, 1), window=5)
        model = Classifier(ClassifierConfig(backbone=config, num_classes=CLASSES)).eval()
        for parameter in model.parameters():  # fresh weights are small: logits of real size show real errors
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.preprocessing = Preprocessing.imagenet(64)
    return model


def _picture() -> bytes:
    """A picture as a file, 97 x 131."""
    from PIL import Image

    stream = BytesIO()
    noise = Image.frombytes("RGB", (13, 9), random.Random(SEED).randbytes(13 * 9 * 3))
    noise.resize((131, 97), Image.Resampling.BICUBIC).save(stream, "PNG")
    return stream.getvalue()


def _prepared(model: Classifier, picture: bytes) -> Tensor:
    from davit.decoding import read_image

    assert model.preprocessing is not None
    return model.preprocessing(read_image(picture))[None]


def _exact_scores(model: Classifier, picture: bytes) -> Tensor:
    with torch.inference_mode():
        return copy.deepcopy(model).double()(_prepared(model, picture).double()).softmax(-1)[0]


def _answer(model: Classifier, picture: bytes, scores: Tensor, backend: BackendName, device: str, remedy: str) -> Check:
    """Scores of a predictor, from the file on, beside those in float64."""
    name = backend if device == "cpu" else f"{backend}, {device}"
    try:
        predictor = Predictor(copy.deepcopy(model), device=device, backend=backend)
        (found,) = predictor(picture, top=CLASSES)
        assert isinstance(found, Classification)
    except NativeError as error:  # how grave that is, the checks of the engine say
        return Check(
            level="warning", name=name, told=str(error).partition(";")[0], remedy="davit doctor native tells more"
        )
    except Exception as error:
        return failed(name, error, remedy)
    wanted = scores[list(found.indices)]
    difference = float((torch.tensor(found.scores, dtype=torch.float64) - wanted).abs().max())  # NaN, if any is
    told = f"one image: scores differ by {difference:.1g} from those in float64"
    if not difference <= ALLOWED:
        return Check(level="problem", name=name, told=f"{told}, and {ALLOWED:.0g} is allowed", remedy=remedy)
    return Check(level="ok", name=name, told=told)


def _gradients(model: Classifier) -> Check:
    """A backward pass beside one in float64."""
    images = torch.randn(2, 3, 37, 50, generator=torch.Generator().manual_seed(SEED))
    target = torch.tensor([1, 3])
    found, wanted = copy.deepcopy(model), copy.deepcopy(model).double()
    for one, pixels in ((found, images), (wanted, images.double())):
        nn.functional.cross_entropy(one(pixels), target).backward()
    errors = []
    for a, b in zip(found.parameters(), wanted.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        errors.append((a.grad.double() - b.grad).abs().max() / b.grad.abs().max().clamp_min(1e-30))
    worst = float(torch.stack(errors).max())
    told = f"gradients differ by {worst:.1g} from those in float64"
    if not worst <= 10 * ALLOWED:
        remedy = "the numbers of this PyTorch are wrong here: reinstall torch and torchvision together (pytorch.org)"
        return Check(level="problem", name="training", told=told, remedy=remedy)
    return Check(level="ok", name="training", told=told)


def _operators(_: Classifier) -> Check:
    """The compiled operators of torchvision, which detectors need: they fail where it was made for another torch."""
    from torchvision.ops import nms, roi_align

    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30]])
    kept = nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist()
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pooled = roi_align(ramp, [torch.tensor([[2.0, 2, 6, 6]])], 2, aligned=True).flatten().tolist()
    if kept != [0, 2] or any(abs(a - b) > 1e-5 for a, b in zip(pooled, (2.5, 4.5, 2.5, 4.5), strict=True)):
        told = f"torchvision's nms or roi_align compute something else: {kept}, {pooled}"
        remedy = "reinstall torch and torchvision together (pytorch.org)"
        return Check(level="problem", name="operators", told=told, remedy=remedy)
    return Check(level="ok", name="operators", told="torchvision's nms and roi_align, which detectors need")


def _files(model: Classifier) -> Check:
    """A checkpoint, written and read."""
    from davit.weights.load import load
    from davit.weights.save import save

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save(model, path)
        read = load(path).state_dict()
    equal = all(torch.equal(tensor, read[name]) for name, tensor in model.state_dict().items())
    if not equal:
        told = f"a checkpoint in {tempfile.gettempdir()} came back changed"
        return Check(
            level="problem", name="files", told=told, remedy="look at the disk and at the version of safetensors"
        )
    return Check(level="ok", name="files", told="a checkpoint was written and read, equal to the bit")

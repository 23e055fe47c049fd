"""What a browser is given to draw: the numbers in its sprites are those of a hooked forward, for every task."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from colour_texts import fresh
from davit.explain import drawing
from davit.explain.attention import record_attention
from davit.explain.attention_maps import AttentionRecord
from davit.explain.explained import Explained
from davit.explain.explanation import explain_picture, explain_pixels
from davit.explain.grad_cam import grad_cam
from davit.explain.payload import EVERYTHING, LEVELS, Detail, sample_data
from davit.explain.targets import find_targets
from davit.inference.zero_shot import Labels, zero_shot
from davit.models.attention import ChannelAttention, WindowAttention
from davit.models.classifier import Classifier
from davit.models.config import ClassifierConfig, DaViTConfig
from davit.models.davit import DaViT
from davit.models.windows import partition_windows
from davit.preprocessing import Preprocessing
from foreign import randomise
from small_detectors import talkative
from spoken_models import segmenter

CONFIG = DaViTConfig(widths=(16, 16, 32, 32), depths=(1, 1, 2, 1), head_width=8, window=4)
SIZE = Preprocessing(size=(97, 131), fit="squash")


def classifier() -> Classifier:
    model = Classifier(ClassifierConfig(backbone=CONFIG, num_classes=4))
    randomise(model)
    model.preprocessing, model.classes = SIZE, ("ant", "bee", "cat", "dog")
    return model


def photo(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 255, (120, 90, 3), dtype=np.uint8)).convert(mode)


def decoded(uri: str, see_through: bool = True) -> np.ndarray:
    """The values 0-1 behind a sprite's pixels, from their place in its palette."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert image.mode == "P"
    levels = np.asarray(image)
    colours = np.array(image.getpalette()).reshape(-1, 3)
    count = 64 if len(colours) > 16 else 16
    assert np.array_equal(colours[:count], drawing.palette(count))
    if see_through:
        assert image.info["transparency"][0] == 0
    return levels / (count - 1)


def hooked(model: nn.Module, pixels: Tensor, kind: type[nn.Module]) -> list[tuple[nn.Module, Tensor]]:
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [
        module.register_forward_pre_hook(lambda m, args: seen.append((m, args[0])))
        for module in model.modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        model(pixels[None])
    for handle in handles:
        handle.remove()
    return seen


def test_window_sprites_hold_the_weights_of_a_hooked_forward() -> None:
    model = classifier()
    pixels = SIZE(photo())
    sample = explain_pixels(model, pixels, (), preprocessing=SIZE, blocks="all")
    data = sample_data(sample, EVERYTHING)
    seen = hooked(model, pixels, WindowAttention)
    assert [(entry["stage"], entry["block"]) for entry in data["windows"]] == [(0, 0), (1, 0), (2, 0), (2, 1), (3, 0)]
    for entry, (module, x) in zip(data["windows"], seen, strict=True):
        (H, W), P, C = entry["side"], entry["window"], x.shape[-1]
        assert tuple(x.shape[1:3]) == (H, W)
        heads = C // module.head_width
        assert (entry["step"], entry["heads"], entry["shown"]) == (1, heads, heads)
        sheet = decoded(entry["sprite"]).reshape(1 + heads, H, P, W, P)
        with torch.no_grad():
            qkv = module.qkv(partition_windows(x, P)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
            weights = (qkv[0] @ qkv[1].mT / module.head_width**0.5).softmax(-1)  # (windows, heads, keys, queries)
        for row in range(0, H, 3):
            for column in range(W):
                window = row // P * -(-W // P) + column // P
                tile = weights[window, :, row % P * P + column % P].view(heads, P, P).clone()
                tile[:, H - row // P * P :] = 0
                tile[:, :, W - column // P * P :] = 0
                mean = tile.mean(0)
                assert entry["peak"][row][column] == pytest.approx(100 * float(mean.max()), abs=0.06)
                padding = entry["padding"][row][column] if entry["padding"] else 0
                assert padding == pytest.approx(100 * (1 - float(mean.sum())), abs=0.06)
                for place, wanted in enumerate([mean, *tile]):
                    got = sheet[place, row, :, column]
                    np.testing.assert_allclose(got, wanted / wanted.max(), atol=0.51 / (LEVELS - 1))


def test_channel_sprites_hold_the_affinity_and_the_maps_of_a_hooked_forward() -> None:
    model = classifier()
    pixels = SIZE(photo())
    data = sample_data(explain_pixels(model, pixels, (), preprocessing=SIZE, blocks="all"), EVERYTHING)
    for entry, (module, x) in zip(data["channels"], hooked(model, pixels, ChannelAttention), strict=True):
        groups, D = entry["groups"], entry["channels"]
        assert entry["shown"] == groups == x.shape[-1] // 8
        with torch.no_grad():
            q, k, v = module.qkv(x[0].flatten(0, 1)).unflatten(-1, (3, groups, D)).permute(1, 2, 3, 0).unbind(0)
            affinity = (q @ k.mT / 8**0.5).softmax(-1)  # (groups, D, D)
            attended = (affinity @ v).unflatten(-1, x.shape[1:3])
        values = v.unflatten(-1, x.shape[1:3])
        matrices = decoded(entry["affinity"], see_through=False).reshape(D, groups, D).swapaxes(0, 1)
        h, w = entry["side"]
        maps = decoded(entry["maps"], see_through=False).reshape(groups, 2, h, D, w)
        for group in range(groups):
            top = float(affinity[group].max())
            assert entry["peak"][group] == pytest.approx(100 * top, abs=0.06)
            np.testing.assert_allclose(matrices[group], affinity[group] / top, atol=0.51 / 63)
            chosen = entry["chosen"][group]
            assert sorted(chosen) == list(range(D))
            energy = [float(attended[group, channel].square().mean()) for channel in chosen]
            assert energy == sorted(energy, reverse=True)
            for place, channel in enumerate(chosen):
                shares = affinity[group, channel].sort(descending=True)
                for (source, percent), wanted in zip(entry["top"][group][place], shares.values, strict=False):
                    assert percent == pytest.approx(100 * float(wanted), abs=0.06)
                    assert percent == pytest.approx(100 * float(affinity[group, channel, int(source)]), abs=0.06)
                for line, whole in enumerate((values, attended)):
                    wanted = whole[group, channel].abs()
                    got = maps[group, line, :, place]
                    np.testing.assert_allclose(got, wanted / wanted.max(), atol=0.51 / (LEVELS - 1) + 1e-4)


def test_cam_and_rollout_sprites_hold_their_maps() -> None:
    model = classifier()
    pixels = SIZE(photo())
    targets = find_targets(model, pixels, count=2)
    sample = explain_pixels(model, pixels, targets, preprocessing=SIZE, points=[(96.5, 130.5)])
    data = sample_data(sample)
    for cam, target in zip(data["cams"], targets, strict=True):
        for entry, wanted in zip(cam["maps"], grad_cam(model, pixels, target), strict=True):
            assert entry["side"] == list(wanted.shape)
            assert entry["empty"] == (not wanted.any())
            top = float(wanted.max()) or 1.0
            np.testing.assert_allclose(decoded(entry["image"]), wanted / top, atol=0.51 / 63)
        assert cam["image"] == cam["maps"][cam["stage"]]["image"]
    rollout = sample.rollout
    assert rollout is not None
    assert data["rollout"]["side"] == [4, 5]
    low, high = rollout.mean.aminmax()
    np.testing.assert_allclose(decoded(data["rollout"]["image"]), (rollout.mean - low) / (high - low), atol=0.51 / 63)
    assert data["rollout"]["range"] == pytest.approx([25 * 33 * float(low), 25 * 33 * float(high)], abs=0.006)
    tiles = decoded(data["rollout"]["tiles"]).reshape(4, 25, 5, 33)
    tile = rollout.tiles[2, 3]
    low, high = tile.aminmax()
    np.testing.assert_allclose(tiles[2, :, 3], (tile - low) / (high - low), atol=0.51 / (LEVELS - 1))
    torch.testing.assert_close(rollout.at[0], rollout.tiles[3, 4])


def models() -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"classifier": classifier(), "segmenter": segmenter(), "backbone": DaViT(CONFIG)}
    for kind in ("mask_rcnn", "retinanet"):
        found[kind] = talkative(kind)
        found[kind].preprocessing = Preprocessing(size=(64, 96), fit="within")
    found["backbone"].preprocessing = SIZE
    found["image-text"] = fresh()
    found["zero-shot"] = zero_shot(fresh(), Labels(names=("red", "blue")))
    return found


@pytest.mark.parametrize("name", sorted(models()))
def test_every_task_gives_values_that_a_page_draws(name: str) -> None:
    model = models()[name]
    data: dict[str, Any] = json.loads(json.dumps(explain_picture(model, photo("RGBA")), allow_nan=False))
    wanted = {"name", "right", "image", "width", "height", "windows", "channels", "cams", "cam", "rollout"}
    assert wanted <= set(data)
    assert [entry["stage"] for entry in data["windows"]] == [0, 1, 2, 3] == [e["stage"] for e in data["channels"]]
    shown = Image.open(io.BytesIO(base64.b64decode(data["image"].partition(",")[2])))
    assert shown.size == (data["width"], data["height"])
    assert decoded(data["rollout"]["image"]).shape == tuple(data["rollout"]["cells"])
    if name in ("backbone", "image-text"):
        assert data["cam"] is None
        return
    assert set(data["cam"]) >= {"class", "label", "score", "image"}
    assert 0 < data["cam"]["score"] <= 1
    assert decoded(data["cam"]["image"]).shape == tuple(data["cam"]["maps"][data["cam"]["stage"]]["side"])
    again = explain_picture(model, photo(), class_index=data["cam"]["class"])
    assert again["cam"]["label"] == data["cam"]["label"]


def test_a_class_and_what_is_not_there() -> None:
    model = classifier()
    assert explain_picture(model, photo(), class_index=2)["cam"]["label"] == "cat"
    with pytest.raises(ValueError, match="no class 4"):
        explain_picture(model, photo(), class_index=4)
    model.preprocessing = None
    with pytest.raises(ValueError, match=r"set its \.preprocessing"):
        explain_picture(model, photo())


def test_large_maps_are_thinned() -> None:
    record = record_attention(classifier(), torch.randn(3, 300, 400), "all")
    sample = Explained(image=Image.new("L", (400, 300)), name="", record=record)
    data = sample_data(sample, Detail(queries=20, heads=1, groups=1, channels=3, map_side=16))
    first, channels = data["windows"][0], data["channels"][0]
    assert (first["side"], first["step"], first["shown"]) == ([75, 100], 5, 1)
    assert decoded(first["sprite"]).shape == (2 * 15 * 4, 20 * 4)
    assert (channels["side"], channels["shown"], len(channels["chosen"][0])) == ([12, 16], 1, 3)
    assert data["rollout"] is None
    empty = sample_data(Explained(image=sample.image, name="", record=AttentionRecord(windows=(), channels=())))
    assert empty["windows"] == empty["channels"] == empty["cams"] == []

"""Detection, segmentation and image-text pre-training on two processes: the same run and scores as on one."""

from pathlib import Path

import pytest

from test_distributed import launch

DENSE = {"data.batch_size": "6", "data.scenes": "40", "schedule.epochs": "2"}


def scenario(name: str, recipe: str, folder: str | None = None, **rest) -> dict:
    settings = DENSE | {key.replace("__", "."): value for key, value in rest.items() if "__" in key}
    others = {key: value for key, value in rest.items() if "__" not in key}
    return {"name": name, "folder": folder or name, "settings": settings, "recipe": recipe, "steps": 8} | others


def scenarios(*, shards: bool) -> list[dict]:
    found = [
        scenario("detection", "digits.detection"),
        scenario("parts", "digits.detection", runtime__accumulate="3"),
        scenario("retinanet", "digits.retinanet"),
        scenario("segmentation", "digits.segmentation"),
        scenario("contrastive", "digits.contrastive"),
    ]
    if not shards:
        return found
    return [
        *found,
        scenario("detection-fsdp", "digits.detection", runtime__parallel="fsdp"),
        scenario("segmentation-fsdp", "digits.segmentation", runtime__parallel="fsdp"),
        scenario("first", "digits.segmentation", "again", stop_before=4, rank=1),
        scenario("second", "digits.segmentation", "again"),
        scenario("contrastive-fsdp", "digits.contrastive", runtime__parallel="fsdp"),
        scenario("contrastive-first", "digits.contrastive", "contrastive-again", stop_before=4, rank=1),
        scenario("contrastive-second", "digits.contrastive", "contrastive-again"),
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return launch(tmp_path_factory.mktemp("alone"), 1, scenarios(shards=False))[0]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    return launch(folder, 2, scenarios(shards=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["detection", "retinanet", "segmentation", "contrastive"])
def test_two_processes_score_as_one(alone: dict, two: list[dict], name: str) -> None:
    """Four validation pictures, each once."""
    assert alone[name]["scores"]["count"] == 4
    for seen in two:
        assert seen[name]["scores"] == pytest.approx(alone[name]["scores"], rel=1e-6)


@pytest.mark.slow
def test_detection_does_not_depend_on_processes_and_micro_batches(alone: dict, two: list[dict]) -> None:
    """Anchors and regions are sampled for each image of the whole batch; later, roundings flip choices."""
    for seen in (alone, *two):
        for name, whole in (
            ("parts", "detection"),
            ("detection", "detection"),
            ("detection-fsdp", "detection"),
            ("retinanet", "retinanet"),
        ):
            if name in seen:
                assert seen[name]["losses"][:2] == pytest.approx(alone[whole]["losses"][:2], rel=1e-5)
                assert seen[name]["losses"] == pytest.approx(alone[whole]["losses"], rel=1e-2)


@pytest.mark.slow
def test_batch_norm_statistics_are_the_same_on_all_processes(two: list[dict]) -> None:
    """Weights and statistics after eight steps, sharded or not, and after a stop."""
    first, second = two
    for name in ("segmentation", "segmentation-fsdp", "second"):
        assert first[name]["digest"] == second[name]["digest"], name
        assert first[name]["losses"] == second[name]["losses"], name
    assert first["second"]["digest"] == first["segmentation"]["digest"]
    assert first["first"]["losses"] + first["second"]["losses"] == first["segmentation"]["losses"]


@pytest.mark.slow
def test_pairs_are_compared_with_the_whole_batch_on_any_number_of_processes(alone: dict, two: list[dict]) -> None:
    """Eight steps of the contrastive loss, DDP and FSDP2, and after a stop."""
    whole = alone["contrastive"]["losses"]
    for seen in two:
        for name in ("contrastive", "contrastive-fsdp"):
            assert seen[name]["losses"][0] == pytest.approx(whole[0], rel=1e-6)
            assert seen[name]["losses"] == pytest.approx(whole, rel=1e-4)
        first, second = seen["contrastive-first"], seen["contrastive-second"]
        assert first["losses"] + second["losses"] == seen["contrastive"]["losses"]
        assert second["digest"] == seen["contrastive"]["digest"]

"""`davit explain`: see what a model's answer for an image rests on, and both attentions inside."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from davit.explain.attention import Blocks
    from davit.explain.explained import Cam, Explained
    from davit.explain.occlusion import OcclusionConfig
    from davit.explain.stills import Stills
    from davit.explain.subject import Subject
    from davit.inference.results import Prepared, Result
    from davit.inference.stream_files import PictureFiles

_SHOWN = 5  # lines of an answer in the page

_HELP = """Explain what a model makes of images: Grad-CAM of its answers, attention rollout, and the window and channel
attention of every stage, block and head. DIR/index.html is one page to click in, without anything from outside; beside
it each image has a folder of PNGs.

Files that cannot be decoded, or of which nothing can be explained, are named on stderr while the others go on; the exit
code is then 1, and 2 where nothing could be begun. Attention is not an explanation by itself: docs/explain.md says what
each picture means.

  davit explain --model davit_tiny.msft_in1k cat.jpg --out why
  davit explain --model mine.safetensors photos --class cat --point 120,80 --occlusion --out why
  davit explain --model detector.safetensors street.jpg --top 5 --out why
  davit explain --model image_text.safetensors street.jpg --text 'a red bus' --out why
  davit explain --model davit_tiny.msft_in1k cat.jpg --like dog.jpg --blocks 3.1,4 --head 2 --out why
"""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What is done with each image."""

    subject: "Subject"
    blocks: "Blocks"
    points: tuple[tuple[int, int], ...]
    class_index: int | None
    top: int
    occlusion: "OcclusionConfig | None"
    stills: "Stills"
    out: Path


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def explain(
        paths: Annotated[Positional[tuple[str, ...]], arg(metavar="PATH...", help_behavior_hint="(required)")],
        *,
        model: Annotated[str, arg(metavar="MODEL")],
        out: Annotated[Path, arg(metavar="DIR")],
        top: Annotated[int, arg(metavar="N")] = 3,
        class_: Annotated[str | None, arg(name="class", metavar="NAME|INDEX", help_behavior_hint="")] = None,
        text: Annotated[tuple[str, ...], arg(metavar="TEXT...", help_behavior_hint="")] = (),
        like: Annotated[tuple[str, ...], arg(metavar="IMAGE...", help_behavior_hint="")] = (),
        labels: Annotated[str | None, arg(metavar="NAME,...|FILE", help_behavior_hint="")] = None,
        point: Annotated[tuple[str, ...], arg(metavar="Y,X...", help_behavior_hint="")] = (),
        blocks: Annotated[str, arg(metavar="all|last|STAGE.BLOCK,...")] = "all",
        head: Annotated[str, arg(metavar="mean|N")] = "mean",
        group: Annotated[int, arg(metavar="N")] = 1,
        stage: Annotated[int | None, arg(metavar="1-4", help_behavior_hint="")] = None,
        occlusion: bool = False,
        patches: Annotated[int, arg(metavar="N")] = 7,
        size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        json: bool = False,
    ) -> int:
        """Explain.

        Args:
            paths: Images, folders (with all folders in them) or quoted patterns such as 'photos/**/*.jpg'.
            model: A checkpoint or a name of `davit models`; backbones without a head, too.
            out: Folder for index.html and a folder of PNGs for each image; files of the same names are replaced.
            top: How many classes, objects or areas of the answer to explain, the surest first.
            class_: Explain this class instead: its logit, its objects, or its area.
            text: Explain the likeness to these texts, with an image-text model.
            like: Explain the likeness to these images, with any model.
            labels: Make a classifier of an image-text model: names between commas, or a file with one a line.
            point: Where positions ask, in pixels of the image from the top left corner; by default in the middle.
            blocks: Whose attention to show: all, last (of each stage), or places such as 3 and 3.2.
            head: Which head of window attention the PNGs show; the page has all of them.
            group: Which group of channels the PNGs show; the page has all of them.
            stage: At which of the four maps the PNGs show Grad-CAM; by default the last, of an object the one that
                suits its size. The page has all of them.
            occlusion: Also cover parts of the image and see what the answer loses: some 200 answers for each class.
            patches: Patches of --occlusion along the longer side; each moves by half its side.
            size: Side of the images, for weights that do not say it.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            variant: What MODEL is, where its tensors leave it open: a name of `davit models`.
            json: Print what was written, and the answers, as JSON.
        """
        from davit.explain.attention import places
        from davit.explain.occlusion import OcclusionConfig
        from davit.explain.stills import Stills
        from davit.explain.subject import Asked, open_subject, places_of
        from davit.inference.stream_files import PictureFiles
        from davit.inference.zero_shot import parse_labels

        if top < 1:
            raise ValueError(f"--top must be at least 1, got {top}")
        if head != "mean" and not head.isdecimal():
            raise ValueError(f"--head takes mean or the number of a head, got {head!r}")
        if labels is not None and (text or like):
            raise ValueError("--labels makes a classifier, and --text and --like compare: give one or the other")
        if class_ is not None and (text or like):
            raise ValueError("--class explains an answer, and --text and --like a likeness: give one or the other")
        stills = Stills(
            head=None if head == "mean" else int(head), group=group, stage=None if stage is None else stage - 1
        )
        covered = OcclusionConfig(patches=patches) if occlusion else None
        points = tuple(_point(each) for each in point)
        images = PictureFiles(paths)
        asked = Asked(labels=parse_labels(labels) if labels else None, texts=text, pictures=like)
        subject = open_subject(model, asked, variant=variant, size=size, device=device)
        given = [each.strip() for each in blocks.split(",") if each.strip()]
        chosen: Blocks = (
            "all" if given == ["all"] else "last" if given == ["last"] else places_of(given, subject.backbone.depths)
        )
        widths = [subject.backbone.widths[stage] for stage, _ in places(subject.backbone.depths, chosen)]
        stills.check(widths, subject.backbone.head_width)
        job = _Job(
            subject=subject,
            blocks=chosen,
            points=points,
            class_index=None if class_ is None else subject.class_index(class_),
            top=top,
            occlusion=covered,
            stills=stills,
            out=out,
        )
        card = {"model": model, "blocks": blocks, "command": "davit explain " + " ".join(map(_quoted, arguments))}
        return _explain_all(job, images, card, as_json=json)

    return tyro.cli(explain, prog="davit explain", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _point(text: str) -> tuple[int, int]:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--point takes a row and a column of pixels such as 120,80, got {text!r}")
    return int(parts[0]), int(parts[1])


def _quoted(argument: str) -> str:
    from shlex import quote

    return quote(argument)


def _explain_all(job: _Job, images: "PictureFiles", card: dict[str, str], *, as_json: bool) -> int:
    from json import dumps

    from tqdm import tqdm

    from davit.cli.predict_drawn import free_name
    from davit.decoding import ImageError, show_path
    from davit.explain.explain_page import ExplainPage
    from davit.inference.stream import prepare

    job.out.mkdir(parents=True, exist_ok=True)
    page = ExplainPage(f"DaViT explained: {Path(card['model']).name}", card)
    entries: list[dict[str, Any]] = []
    taken: set[str] = set()
    failed = 0
    for number, path in enumerate(bar := tqdm(images, total=len(images), unit="image", disable=None, leave=False)):
        name = free_name(path.stem, taken)
        try:
            prepared = prepare(path, job.subject.preprocessing, number)
            if isinstance(prepared, ImageError):
                raise prepared
            entry, sample = _explain_one(job, path, name, prepared)
        except ValueError as error:
            failed += 1
            text = str(error) if isinstance(error, ImageError) else f"{show_path(path)}: {error}"
            tqdm.write(f"davit explain: {text}", file=sys.stderr)
            entries.append({"file": str(path), "error": text})
            continue
        page.add(sample, name)
        entries.append(entry)
        if not as_json:
            tqdm.write(f"{show_path(path)}: {_told(entry)}", file=sys.stdout)
    bar.close()
    index = job.out / "index.html"
    size = page.write(index)
    for name in page.left_out:
        print(f"davit explain: {name} is in its folder only, for the page is full", file=sys.stderr)
    if as_json:
        done = {"page": str(index), "bytes": size, "images": len(entries), "failed": failed, "pictures": entries}
        print(dumps(done, indent=2))
    else:
        print(f"open {index.resolve().as_uri()} ({size / 1e6:.1f} MB)")
    return 1 if failed else 0


def _explain_one(job: _Job, path: Path, name: str, prepared: "Prepared") -> tuple[dict[str, Any], "Explained"]:
    """Explain one image, write its PNGs, and return what is told of it and what the page shows."""
    from dataclasses import replace

    from davit.explain.explanation import explain_pixels
    from davit.explain.stills import write_stills

    subject, pixels = job.subject, prepared.pixels
    middle = prepared.size[0] // 2, prepared.size[1] // 2
    asked = job.points or (middle,)
    points = [_placed(subject, point, prepared) for point in asked]
    answer = subject.answer(prepared)
    targets = subject.targets(pixels, job.class_index, job.top)
    sample = explain_pixels(
        subject.model,
        pixels,
        targets,
        preprocessing=subject.preprocessing,
        name=path.name,
        blocks=job.blocks,
        points=points,
        occlusion=job.occlusion,
    )
    sample = replace(sample, answer=_pairs(answer))
    written = write_stills(sample, job.stills, job.out / name, [f"{y},{x}" for y, x in asked])
    entry: dict[str, Any] = {"file": str(path), "folder": str(job.out / name)}
    entry["answer"] = {key: value for key, value in answer.to_json().items() if key != "file"} if answer else None
    entry["targets"] = [_target(cam) for cam in sample.cams]
    entry["points"] = [list(point) for point in asked]
    return entry | {"written": [file.name for file in written]}, sample


def _placed(subject: "Subject", point: tuple[int, int], prepared: "Prepared") -> tuple[float, float]:
    """Where a pixel of the image lies in what the model sees.

    Raises:
        ValueError: outside the image, or cropped off.
    """
    from davit.explain.attention import check_point

    check_point(point, prepared.size)
    y, x = subject.preprocessing.place(point[0] + 0.5, point[1] + 0.5, *prepared.size)
    height, width = prepared.resized
    if not (0 <= y < height and 0 <= x < width):
        raise ValueError(
            f"point {point[0]},{point[1]} is cropped off before the model, which sees the middle of the image only"
        )
    return y, x


def _pairs(answer: "Result | None") -> tuple[tuple[str, float], ...]:
    """Names and shares of an answer, best first."""
    from davit.structures import Classification, Detections, Segmentation

    if isinstance(answer, Classification):
        return tuple(zip(answer.labels, answer.scores, strict=True))
    if isinstance(answer, Detections):
        return tuple(zip(answer.labels, answer.scores.tolist(), strict=True))[:_SHOWN]
    return tuple(answer.shares().items())[:_SHOWN] if isinstance(answer, Segmentation) else ()


def _target(cam: "Cam") -> dict[str, Any]:
    """What was explained, and how strongly the last map and occlusion speak for it."""
    target = cam.target
    entry: dict[str, Any] = {"class": target.index, "label": target.label, "score": round(target.score, 6)}
    entry["stage"] = target.stage + 1
    if target.box:
        entry["box"] = [round(edge, 2) for edge in target.box]
    entry["nothing_speaks_for_it"] = not bool(cam.maps[target.stage].any())
    if cam.occlusion is not None:
        entry["most_lost_when_covered"] = round(float(cam.occlusion.max()), 6)
    return entry


def _told(entry: dict[str, Any]) -> str:
    explained = "; ".join(f"{target['label']} {target['score']:.3f}" for target in entry["targets"])
    return f"{explained or 'attention'} in {entry['folder']}"

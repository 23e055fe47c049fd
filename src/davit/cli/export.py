"""`davit export`: a checkpoint to a file that other engines run."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from davit.inference.judging import Judgement
    from davit.inference.parity import Parity
    from davit.preprocessing import Preprocessing

_HELP = """Turn a checkpoint into a file that other engines run, with preprocessing and class names inside.

The file is compared with the model on made-up images of several sizes and batches, and on those of --images. A file
that differs is deleted, and the exit code is 1. OUT.parity.json holds what was compared.

  onnx      OUT.onnx    ONNX Runtime and many others; every model
  openvino  OUT.xml     OpenVINO, with the weights in OUT.bin; every model; float32 or int8
  torch     OUT.pt2     AOTInductor: compiled for this processor and PyTorch, no detectors; opening it runs its code
  native    OUT.davit   the native engine; models with a head; float32 or int8

--int8 fits the model to images of --calibrate, best some hundred like those it is meant for. The file must be faster
than a float32 one, give nine in ten of its answers on pictures it was not fitted to, and where --calibrate has labels,
as `davit evaluate` takes them, lose at most --max-drop points of the score; or else it is deleted, too.

  davit export mine.safetensors mine.onnx
  davit export detector.safetensors detector.onnx --images photos
  davit predict --model detector.onnx street.jpg
  davit export mine.safetensors mine.xml --int8 --calibrate flowers
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def export(
        checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")],
        out: Annotated[Positional[Path], arg(metavar="OUT")],
        format: Literal["onnx", "openvino", "torch", "native"] | None = None,
        images: Annotated[Path | None, arg(metavar="DIR")] = None,
        count: Annotated[int, arg(metavar="N")] = 16,
        int8: bool = False,
        calibrate: Annotated[Path | None, arg(metavar="DIR")] = None,
        fit: Annotated[int, arg(metavar="N")] = 256,
        judge: Annotated[int, arg(metavar="N")] = 2000,
        max_drop: Annotated[float, arg(metavar="POINTS")] = 0.5,
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        json: bool = False,
    ) -> int:
        """Export, compare, and say how far apart the answers were.

        Args:
            checkpoint: A checkpoint, or a name of `davit models`.
            out: The file to write: .onnx, .xml, .pt2 or .davit.
            format: Format to write; by default the one that the ending of OUT says.
            images: Compare on pictures, too: a folder, a file or a quoted pattern.
            count: Pictures to take of them, evenly spread.
            int8: Write whole numbers of 8 bits, where that costs little accuracy.
            calibrate: Images to fit int8 to: best labelled ones, as `davit evaluate` takes them; or any pictures.
            fit: Images to fit to at most, evenly spread; of train/ and val/ the former's.
            judge: Labelled images to score at most, evenly spread; of train/ and val/ the latter's.
            max_drop: Points of the score, of a hundred, that int8 may lose on them: of top-1 accuracy, mask or box AP,
                or mean IoU.
            variant: What CHECKPOINT is, where its tensors leave it open: a name of `davit models`.
            json: Print the comparison as JSON.
        """
        from davit.cli.export_int8 import Calibration, find_int8, spread
        from davit.cli.predict import find_images
        from davit.inference.backends.eager import refuse_image_text
        from davit.inference.export import SUFFIXES, ParityError, report
        from davit.inference.export import export as write
        from davit.weights.load import load

        for flag, number in (("--count", count), ("--fit", fit), ("--judge", judge)):
            if number < 1:
                raise ValueError(f"{flag} must be at least 1, got {number}")
        if int8 != (calibrate is not None):
            raise ValueError(
                "--int8 takes --calibrate DIR, images of the data that the model is meant for"
                if int8
                else "--calibrate is for --int8"
            )
        chosen = format or next((name for name, suffix in SUFFIXES.items() if suffix == out.suffix), "onnx")
        paths = find_images([str(images)]) if images else []
        model = load(checkpoint, variant=variant)
        refuse_image_text(model)
        if paths and model.preprocessing is None:
            raise ValueError(f"{checkpoint} does not say how images are prepared for it; leave --images out")
        some = [paths[index] for index in spread(len(paths), count)]
        pictures = _pictures(some, model.preprocessing) if model.preprocessing else ()
        settings = Calibration(data=calibrate, fitted=fit, judged=judge, max_drop=max_drop) if calibrate else None
        provenance = {"checkpoint": checkpoint, "command": " ".join(["davit", "export", *arguments])}
        try:
            coded = find_int8(model, settings) if settings else None
            parity = write(model, out, chosen, pictures=pictures, provenance=provenance, int8=coded)
        except ParityError as error:
            print(f"davit export: error: {error}", file=sys.stderr)
            if json:
                print(dumps(report(error.parity), indent=2))
            return 1
        print(dumps(report(parity), indent=2) if json else _sentences(parity, out))
        return 0

    return tyro.cli(export, prog="davit export", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _pictures(paths: list[Path], preprocessing: "Preprocessing") -> "Iterator[tuple[str, Tensor]]":
    from davit.decoding import read_image

    for path in paths:
        yield str(path), preprocessing(read_image(path))


def _sentences(parity: "Parity", out: Path) -> str:
    size = sum(file.stat().st_size for file in _files(out))
    as_model = "as the model" if parity.judgement is None else "numbers at every size"
    lines = [f"{out}: {size / 1e6:.1f} MB, {as_model} in {len(parity.comparisons)} batches", ""]
    lines.append(f"  {'images':<14} largest difference")
    for one in parity.comparisons:
        batch, _, height, width = one.shape
        found = f", {one.objects} objects" if one.objects is not None else ""
        lines.append(f"  {f'{batch} x {height}x{width}':<14} {_told(one.differences)}{found}   {one.images}")
    allowed = f"allowed: {_told(parity.tolerances)}; " if parity.tolerances else ""
    lines += ["", f"{allowed}{out.name}.parity.json has it all"]
    if parity.judgement:
        return "\n".join([*lines, *_judged(parity.judgement)])
    if parity.unmatched:
        lines.append(f"{parity.unmatched} objects were found by one of the two only, {parity.objects} by the model")
    if parity.objects == 0:
        lines.append("No object was found in any of them, so none was compared: give pictures with objects by --images")
    return "\n".join(lines)


def _judged(judgement: "Judgement") -> list[str]:
    before, after = judgement.milliseconds
    lines = [f"int8, fitted to {judgement.calibrated} images, beside float32:"]
    lines.append(
        f"  {judgement.speedup:.2f} times as fast: {after:.1f} ms, not {before:.1f} ms, for {judgement.batch} images"
    )
    if judgement.agreement is not None:
        lines.append(f"  {100 * judgement.agreement:.1f} % of its answers on {judgement.images} pictures")
    if scores := judgement.scores:
        lines.append(
            f"  {scores.metric} {100 * scores.int8:.2f} %, not {100 * scores.float32:.2f} %, on {scores.images} "
            f"images; {judgement.max_drop:g} points may be lost"
        )
    return lines


def _files(out: Path) -> list[Path]:
    """The file and the one with its weights, where there is one."""
    beside = out.with_suffix(".bin") if out.suffix == ".xml" else out.with_name(f"{out.name}.data")
    return [file for file in (out, beside) if file.exists()]


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.1g}" for name, value in values.items())

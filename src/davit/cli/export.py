"""`davit export`: a checkpoint to a file that other engines run."""

import sys
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from davit.inference.parity import Parity
    from davit.preprocessing import Preprocessing

_HELP = """Turn a checkpoint into a file that other engines run, with preprocessing and class names inside.

The file is compared with the model on made-up images of several sizes and batches, and on those of --images. A file
that differs is deleted, and the exit code is 1. OUT.parity.json holds what was compared.

  davit export mine.safetensors mine.onnx
  davit export detector.safetensors detector.onnx --images photos
  davit predict --model detector.onnx street.jpg
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def export(
        checkpoint: Annotated[Positional[str], arg(metavar="CHECKPOINT")],
        out: Annotated[Positional[Path], arg(metavar="OUT")],
        format: Literal["onnx"] = "onnx",
        images: Annotated[Path | None, arg(metavar="DIR")] = None,
        count: Annotated[int, arg(metavar="N")] = 16,
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        json: bool = False,
    ) -> int:
        """Export, compare, and say how far apart the answers were.

        Args:
            checkpoint: A checkpoint, or a name of `davit models`.
            out: The file to write: .onnx.
            format: Format to write.
            images: Compare on pictures, too: a folder, a file or a quoted pattern.
            count: Pictures to take of them, evenly spread.
            variant: What CHECKPOINT is, where its tensors leave it open: a name of `davit models`.
            json: Print the comparison as JSON.
        """
        from davit.cli.predict import find_images
        from davit.inference.export import ParityError, report
        from davit.inference.export import export as write
        from davit.weights.load import load

        if count < 1:
            raise ValueError(f"--count must be at least 1, got {count}")
        paths = find_images([str(images)]) if images else []
        model = load(checkpoint, variant=variant)
        if paths and model.preprocessing is None:
            raise ValueError(f"{checkpoint} does not say how images are prepared for it; leave --images out")
        chosen = [paths[index * len(paths) // count] for index in range(count)] if len(paths) > count else paths
        pictures = _pictures(chosen, model.preprocessing) if model.preprocessing else ()
        provenance = {"checkpoint": checkpoint, "command": " ".join(["davit", "export", *arguments])}
        try:
            parity = write(model, out, format, pictures=pictures, provenance=provenance)
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
    size = sum(file.stat().st_size for file in (out, out.with_name(f"{out.name}.data")) if file.exists())
    lines = [f"{out}: {size / 1e6:.1f} MB, as the model in {len(parity.comparisons)} batches", ""]
    lines.append(f"  {'images':<14} largest difference")
    for one in parity.comparisons:
        batch, _, height, width = one.shape
        found = f", {one.objects} objects" if one.objects is not None else ""
        lines.append(f"  {f'{batch} x {height}x{width}':<14} {_told(one.differences)}{found}   {one.images}")
    lines += ["", f"allowed: {_told(parity.tolerances)}; {out.name}.parity.json has it all"]
    if parity.unmatched:
        lines.append(f"{parity.unmatched} objects were found by one of the two only, {parity.objects} by the model")
    if parity.objects == 0:
        lines.append("No object was found in any of them, so none was compared: give pictures with objects by --images")
    return "\n".join(lines)


def _told(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.1g}" for name, value in values.items())

"""`davit convert`: a checkpoint to another format."""

import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

if TYPE_CHECKING:
    from davit.weights.load import Weights

Target = Literal[
    "davit", "official", "official-dense", "timm", "florence2", "florence2-native", "mmpretrain", "mmdet", "mmseg",
    "hf",
]  # fmt: skip

_COUNTERS = ("running_mean", "running_var", "num_batches_tracked")  # of batch norms, which nothing learns


_HELP = """Turn a checkpoint into another format, to the bit and in the precision it has.

The format of SRC is recognised. The authors' Mask R-CNN, RetinaNet and UPerNet are taken whole; out of any other
larger model the DaViT is taken.

  davit convert davit_tiny.msft_in1k tiny.safetensors
  davit convert official.pth.tar large.safetensors --variant davit_large_384
  davit convert mine.safetensors mine.pth --to timm
  davit convert mine.safetensors folder --to hf
  davit convert mask_rcnn.pth detector.safetensors
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def convert(
        source: Annotated[Positional[str], arg(metavar="SRC")],
        destination: Annotated[Positional[Path], arg(metavar="DST")],
        to: Target = "davit",
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        window: Annotated[int | None, arg(metavar="SIDE")] = None,
        channel_scale: Literal["channels", "tokens"] | None = None,
        json: bool = False,
    ) -> int:
        """Convert, and say what was done.

        Args:
            source: A file, a folder with one, or a name of `davit models`.
            destination: The file to write: .safetensors, or (not for davit) .pth, .pt or .bin; for hf a folder.
            to: Format to write.
            variant: What SRC is, where its tensors leave it open: a name of `davit models`.
            window: Side of its attention windows, where its tensors leave it open.
            channel_scale: What its channel attention scales by, if it is not what its format implies.
            json: Print the result as JSON.
        """
        said = {"window": window, "channel_scale": channel_scale}
        fields = {key: value for key, value in said.items() if value is not None}
        report = run(source, destination, to, variant, fields, " ".join(["davit", "convert", *arguments]))
        print(json_format.dumps(report, indent=2) if json else _sentences(report))
        return 0

    return tyro.cli(convert, prog="davit convert", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def run(
    source: str, destination: Path, to: Target, variant: str | None, fields: dict[str, Any], command: str
) -> dict[str, Any]:
    """Convert and return what was done, as JSON values."""
    import dataclasses

    from davit.weights.checkpoint import write_checkpoint
    from davit.weights.export import export, note
    from davit.weights.huggingface_folder import write_folder
    from davit.weights.load import read
    from davit.weights.source import write_plain

    weights = read(source, variant=variant, **fields)
    tensors = export(weights.header, weights.tensors, to)
    provenance = {**weights.header.provenance, "command": command}
    described = dataclasses.replace(weights.header, provenance=provenance)
    if to == "davit":
        write_checkpoint(destination, described, tensors)
    elif to == "hf":
        write_folder(destination, described, weights.tensors)
    else:
        classes = weights.header.classes if to in ("mmdet", "mmseg") else ()
        write_plain(destination, tensors, note(weights.header, to), classes)
    return _report(weights, destination, to)


def _report(weights: "Weights", destination: Path, to: Target) -> dict[str, Any]:
    from davit.records import to_json
    from davit.weights.export import head_settings

    learnt = [tensor for name, tensor in weights.tensors.items() if not name.endswith(_COUNTERS)]
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in learnt})
    return {
        "destination": str(destination),
        "from": weights.format,
        "to": to,
        "kind": weights.header.kind,
        "tensors": len(weights.tensors),
        "parameters": sum(tensor.numel() for tensor in learnt),
        "dtypes": dtypes,
        "classes": len(weights.header.classes),
        "head": head_settings(weights.header.config),
        "left_out": len(weights.left),
        "left_out_first": list(weights.left[:5]),
        "config": to_json(weights.header.config),
    }


def _sentences(report: dict[str, Any]) -> str:
    config = report["config"].get("backbone", report["config"])
    precision = " and ".join(report["dtypes"])
    lines = [
        f"{report['destination']}: {report['kind']}, {report['from']} to {report['to']}, {report['tensors']} tensors, "
        f"{report['parameters'] / 1e6:.1f}M parameters in {precision}",
        f"window {config['window']}, {config['merge_kernel']}x{config['merge_kernel']} merging, "
        f"channel attention scaled by {config['channel_scale']}",
    ]
    if report["head"]:
        names = f"{report['classes']} class names" if report["classes"] else "no class names"
        lines.append(f"{report['head']}, which no tensor tells; {names}")
    if report["left_out"]:
        more = ", ..." if report["left_out"] > len(report["left_out_first"]) else ""
        lines.append(f"left out {report['left_out']} tensors: {', '.join(report['left_out_first'])}{more}")
    return "\n".join(lines)

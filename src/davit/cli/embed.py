"""`davit embed`: a vector for each picture or text."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from davit.inference.backends import BackendName

if TYPE_CHECKING:
    from davit.cli.predict_answers import Job

_HELP = """Make a vector for each image, or with --texts for each text: of an image-text model those that both share, of
any other the features under its head, all of length 1.

--out takes numpy's .npz (vectors, names, about), Parquet (name, embedding), or JSON lines (file, embedding); davit
search finds what is alike among them. Images are written as they are done, for .npz and Parquet to a file beside, so
that the same command goes on where Ctrl-C, SIGTERM or a power cut ended it. Files that cannot be decoded are named on
stderr and left out; the exit code is then 1.

  davit embed photos --model image_text.safetensors --out photos.npz
  davit embed photos 'more/*.webp' --model davit_tiny.msft_in1k --out photos.parquet --backend native
  davit embed --texts captions.txt 'a red bus' --model image_text.safetensors --out texts.npz
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def embed(
        paths: Annotated[Positional[tuple[str, ...]], arg(metavar="[PATH...]", help_behavior_hint="")] = (),
        *,
        model: Annotated[str, arg(metavar="MODEL")],
        out: Annotated[Path, arg(metavar="FILE")],
        texts: Annotated[tuple[str, ...], arg(metavar="TEXT|FILE...", help_behavior_hint="")] = (),
        size: Annotated[int | None, arg(metavar="PIXELS", help_behavior_hint="")] = None,
        batch_size: Annotated[int, arg(metavar="N")] = 16,
        workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        backend: BackendName = "eager",
        variant: Annotated[str | None, arg(metavar="NAME")] = None,
        json: bool = False,
    ) -> int:
        """Embed.

        Args:
            paths: Images, folders (with all folders in them) or quoted patterns such as 'photos/**/*.jpg'.
            model: A checkpoint or a name of `davit models`; backbones without a head, too.
            out: Where to: a name that ends in .npz, .parquet or .jsonl.
            texts: Texts instead of images: as they are, or files with one a line.
            size: Side of the images, for weights that do not say it.
            batch_size: Images of one size computed at once.
            workers: Threads that decode while the model computes; by default one for each processor, at most eight.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            backend: What computes: eager is PyTorch, native our engine for CPUs, auto the faster of both here.
            variant: What MODEL is, where its tensors leave it open: a name of `davit models`.
            json: Print what was done as JSON.
        """
        from davit.inference.index import check_suffix

        check_suffix(out)
        if bool(paths) == bool(texts):
            raise ValueError("name images (davit embed PATH...) or texts (--texts TEXT...), one of both")
        if texts:
            return _embed_texts(texts, model, out, device, json=json)
        from davit.cli.predict_answers import Job, Wanted
        from davit.cli.predict_file import TerminatedError, terminable
        from davit.inference.embedding import load_embedder
        from davit.inference.predictor import Predictor
        from davit.inference.stream_files import PictureFiles

        images = PictureFiles(paths)
        wanted = Wanted(workers=workers)
        embedder = load_embedder(model, variant=variant, size=size, device=device, backend=backend, tell=_tell)
        job = Job(predictor=Predictor(embedder, batch_size=batch_size), images=images, wanted=wanted)
        try:
            with terminable():
                return _embed_images(job, model, out, size, variant, backend, json=json)
        except TerminatedError:
            _tell("terminated")
            return 143

    return tyro.cli(embed, prog="davit embed", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _tell(text: str) -> None:
    print(f"davit embed: {text}", file=sys.stderr)


def _embed_images(
    job: "Job", model: str, out: Path, size: int | None, variant: str | None, backend: str, *, json: bool
) -> int:
    """Append what is missing to the JSON lines, and once all are there make of them what was asked for."""
    from davit.cli.predict_file import write_answers
    from davit.inference.embedding import fingerprint_of
    from davit.inference.index import of_entries, write_index
    from davit.inference.stream_results import ResultFile

    about = {"kind": "image", "model": model, "fingerprint": fingerprint_of(model), "size": size, "variant": variant}
    lines = out if out.suffix == ".jsonl" else out.with_name(f"{out.name}.lines")
    file = ResultFile(lines, about | {"backend": backend}, map(str, job.images))
    code = write_answers(file, job.answers, len(job.images), json=json, verb="embed", out=out)
    if lines != out and file.answered == len(job.images):
        write_index(out, of_entries(file.entries(), about))
        for left in (lines, lines.with_name(f"{lines.name}.made-with.json")):
            left.unlink(missing_ok=True)
    return code


def _embed_texts(given: tuple[str, ...], model: str, out: Path, device: str | None, *, json: bool) -> int:
    from json import dumps

    from davit.inference.embedding import embed_with, fingerprint_of, load_features
    from davit.inference.index import Index, write_index

    texts = tuple(text for one in given for text in _lines(one))
    if not texts:
        raise ValueError("there are no texts: give some, or a file with one a line")
    vectors = embed_with(load_features(model), texts, model, device).numpy()
    write_index(out, Index(vectors=vectors, names=texts, kind="text", model=model, fingerprint=fingerprint_of(model)))
    print(dumps({"out": str(out), "texts": len(texts)}) if json else f"{out}: {len(texts):,} texts")
    return 0


def _lines(given: str) -> list[str]:
    """A text, or the lines of a file that there is."""
    if len(given) < 256 and Path(given).is_file():
        return [line.strip() for line in Path(given).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    return [given] if given.strip() else []

"""`davit search`: what is most like a text or a picture."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from davit.inference.index import Index
    from davit.weights.load import LoadedModel

_HELP = """Find in a file of davit embed what is most like a text, or a picture: cosines of their vectors, best first.

A query that is the path of a picture is a picture, anything else a text, which takes an image-text model.

  davit search --index photos.npz 'a dog in the snow'
  davit search --index photos.npz holiday/one.jpg --top 20 --save hits.png
"""


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def search(
        queries: Annotated[Positional[tuple[str, ...]], arg(metavar="QUERY...", help_behavior_hint="(required)")],
        *,
        index: Annotated[Path, arg(metavar="FILE")],
        top: Annotated[int, arg(metavar="N")] = 10,
        model: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None,
        save: Annotated[Path | None, arg(metavar="PNG", help_behavior_hint="")] = None,
        device: Annotated[str | None, arg(metavar="NAME")] = None,
        json: bool = False,
    ) -> int:
        """Search.

        Args:
            queries: Texts, or paths of pictures.
            index: A file of davit embed.
            top: How many to find for each.
            model: The model that made the index, where it lies elsewhere now.
            save: Draw each query and the pictures found into this PNG.
            device: cpu, cuda, cuda:1 and so on; by default the graphics card if there is one.
            json: Print one JSON list, with an entry for each query.
        """
        from davit.inference.embedding import fingerprint_of, load_features
        from davit.inference.index import read_index

        if not queries:
            raise ValueError("say what to look for: a text, or the path of a picture")
        if save is not None and save.suffix.lower() != ".png":
            raise ValueError(f"--save takes a name that ends in .png, got {save}")
        known = read_index(index)
        source = model or known.model
        if fingerprint_of(source) != known.fingerprint:
            raise ValueError(
                f"{index} was made with another model than {source}, and vectors of two models cannot be compared: "
                "name the one that made it with --model, or make the index anew"
            )
        vectors = _embed(load_features(source, known.variant, known.size), source, queries, device)
        hits = known.nearest(vectors, top)
        entries = [_entry(query, found, known) for query, found in zip(queries, hits, strict=True)]
        if save:
            from davit.atomic import atomic_write
            from davit.explain.drawing import png_bytes
            from davit.explain.hits import draw_hits

            with atomic_write(save) as file:
                file.write(png_bytes(draw_hits(entries)))
        return _print(entries, json)

    return tyro.cli(search, prog="davit search", description=_HELP, args=arguments, config=(FlagCreatePairsOff,))


def _embed(model: "LoadedModel", source: str, queries: tuple[str, ...], device: str | None) -> "NDArray[Any]":
    """A vector for each query, by row."""
    import torch

    from davit.inference.backends.eager import EagerBackend
    from davit.inference.embedding import embed_with
    from davit.inference.predictor import Predictor
    from davit.models.zero_shot import Embedder
    from davit.structures import Embedding

    pictures = [query for query in queries if _is_picture(query)]
    texts = [query for query in queries if not _is_picture(query)]
    found: dict[str, torch.Tensor] = {}
    if texts:
        found |= zip(texts, embed_with(model, texts, source, device), strict=True)
    if pictures:
        for query, result in zip(pictures, Predictor(EagerBackend(Embedder(model), device))(pictures), strict=True):
            assert isinstance(result, Embedding)
            found[query] = result.vector
    return torch.stack([found[query] for query in queries]).cpu().numpy()


def _is_picture(query: str) -> bool:
    """Whether a query is a picture.

    Raises:
        ValueError: it looks like the path of one that is not there.
    """
    from davit.decoding import SUFFIXES

    if len(query) < 1024 and Path(query).is_file():
        return True
    if Path(query).suffix.lower() in SUFFIXES:
        raise ValueError(f"{query} is not there; a text to look for does not end as a picture's name does")
    return False


def _entry(query: str, found: list[tuple[int, float]], index: "Index") -> dict[str, Any]:
    key = "file" if index.kind == "image" else "text"
    hits = [{key: index.names[row], "score": round(score, 6)} for row, score in found]
    return {"query": query, "kind": "image" if _is_picture(query) else "text", "hits": hits}


def _print(entries: list[dict[str, Any]], json: bool) -> int:
    from json import dumps

    from davit.decoding import show_path

    if json:
        print(dumps(entries, indent=2))
        return 0
    for entry in entries:
        print(entry["query"])
        for hit in entry["hits"]:
            name = show_path(hit["file"]) if "file" in hit else hit["text"]
            sys.stdout.write(f"  {hit['score']:+.3f}  {name}\n")
    return 0

"""Models side by side: what was measured of each, beside what is published, as rows of text and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from davit.inference.growth import Growth, grow
from davit.inference.side_by_side import Entry, Measured, Unable
from davit.records import to_json
from davit.weights.catalog import WEIGHTS
from davit.weights.published import Published, published

Size = tuple[int, int]  # height, width

COUNTED = (
    "Multiply-adds are counted by torch.utils.flop_counter on the meta device for all models alike: matrix products "
    "and convolutions, one for each pair of its two operations; norms, softmax, activations and additions are left "
    "out, so that figures printed in papers may be a little larger."
)
TIMED = (
    "All candidates of a size take turns of at least a tenth of a second, round by round, so that slow spells of the "
    "machine touch all of them; percentiles are those of all calls. Of few calls the last is the slowest."
)
REMEMBERED = (
    "Memory is what a fresh process that computes this model alone grows by: the most that it has resident while it "
    "computes, less Python, PyTorch and timm. On a graphics card it is the most that tensors take there."
)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models measured on one machine.

    Attributes:
        rows: what was measured, size by size.
        unable: what could not be.
        macs: multiply-adds of each model at the sizes of `rows` and at larger ones, which were counted alone.
        printed_macs: the same at the size of its published accuracy.
        forms: closed forms by kind of attention, see `closed_forms`.
        form_of: the model whose first stage they are of; empty without any.
        others: published numbers of models that cannot be measured here.
        batch: images in a call.
        device: where it was measured.
        environment: versions and hardware.
    """

    rows: tuple[Measured, ...]
    unable: tuple[Unable, ...]
    macs: Mapping[Entry, Mapping[Size, int]]
    printed_macs: Mapping[Entry, int]
    forms: Mapping[str, Mapping[Size, float]]
    form_of: str
    others: tuple[Published, ...]
    batch: int
    device: str
    environment: Mapping[str, Any]

    @property
    def entries(self) -> list[Entry]:
        """What was measured, each once, in order."""
        return list(dict.fromkeys(row.entry for row in self.rows))

    @property
    def sizes(self) -> list[Size]:
        """The sizes that were measured, smallest first."""
        return sorted({(row.height, row.width) for row in self.rows}, key=lambda size: size[0] * size[1])

    def at(self, entry: Entry, size: Size) -> Measured | None:
        """An entry at a size."""
        return next((row for row in self.rows if row.entry == entry and (row.height, row.width) == size), None)

    def latency(self, entry: Entry) -> Growth | None:
        """How the median time of a call grows with the image."""
        return grow({(r.height, r.width): r.speed.milliseconds["p50"] / 1e3 for r in self.rows if r.entry == entry})

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "device": self.device,
            "batch": self.batch,
            "environment": dict(self.environment),
            "counting": COUNTED,
            "results": [_row(row) for row in self.rows],
            "unable": [
                {**_entry(row.entry), "height": row.height, "width": row.width, "reason": row.reason}
                for row in self.unable
            ],
            "growth": [self._growth(entry) for entry in self.entries],
            "closed_forms": {
                "model": self.form_of,
                "stage": 1,
                "kinds": {kind: _grown(grow(costs)) for kind, costs in self.forms.items()},
            },
            "published_only": [to_json(row) for row in self.others],
        }

    def _growth(self, entry: Entry) -> dict[str, Any]:
        return {**_entry(entry), "latency": _grown(self.latency(entry)), "macs": _grown(grow(self.macs[entry]))}


def printed_score(entry: Entry) -> Published | None:
    """What is published of an entry: of a name of `davit models`, of public weights, or of an architecture of timm."""
    weights = None if entry.is_peer else WEIGHTS.get(entry.model)
    return published(weights.variant if weights else entry.model)


def family(entry: Entry) -> str:
    """The family of an architecture; its own name where nothing is published."""
    if not entry.is_peer:
        return "DaViT"
    printed = published(entry.model)
    return printed.family if printed else entry.name


def table(comparison: Comparison) -> list[list[str]]:
    """Head and rows, as text."""
    return [HEAD, *(line(row) for row in comparison.rows)]


HEAD = ["model", "by", "image", "params", "GMACs", "images/s", "p50 ms", "p90", "p99", "calls", "memory", "top-1"]


def line(row: Measured) -> list[str]:
    """A row of the table."""
    printed, times = printed_score(row.entry), row.speed.milliseconds
    memory = taken(row)
    return [
        row.entry.name,
        row.entry.engine,
        f"{row.height}x{row.width}",
        f"{row.counts.parameters / 1e6:.1f} M",
        f"{row.counts.macs / 1e9:.2f}",
        f"{row.speed.images_per_second.median:,.1f}",
        *(f"{times[name]:,.1f}" for name in ("p50", "p90", "p99")),
        str(row.speed.calls),
        "-" if memory is None else f"{memory / 1e6:,.0f} MB",
        "-" if printed is None else f"{printed.score:g}",
    ]


def sort_keys(row: Measured) -> list[Any]:
    """What the cells of `line` sort by."""
    printed = printed_score(row.entry)
    return [
        row.entry.name,
        row.entry.engine,
        row.height * row.width,
        row.counts.parameters,
        row.counts.macs,
        row.speed.images_per_second.median,
        *(row.speed.milliseconds[name] for name in ("p50", "p90", "p99")),
        row.speed.calls,
        taken(row),
        None if printed is None else printed.score,
    ]


def taken(row: Measured) -> int | None:
    """Bytes that a model takes, weights and activations: on the card where one computes, else what the process grew."""
    memory = row.memory
    if memory is None:
        return None
    return memory.peak - memory.imported if memory.on_card is None else memory.on_card


def growth_table(comparison: Comparison) -> list[list[str]]:
    """Head and rows: exponents of the measured times and of the multiply-adds, then the closed forms; or nothing."""
    rows = []
    for entry in comparison.entries:
        latency, macs = comparison.latency(entry), grow(comparison.macs[entry])
        if latency and macs:
            rows.append([entry.name, entry.engine, *_exponents(latency), *_exponents(macs)])
    for kind, costs in comparison.forms.items():
        if form := grow(costs):
            rows.append([f"{kind} attention", "closed form", "-", "-", *_exponents(form)])
    largest = comparison.sizes[-2:]
    if not rows or len(largest) < 2:
        return []
    far = sorted({size for macs in comparison.macs.values() for size in macs}, key=lambda size: size[0] * size[1])[-2:]
    head = ["model", "by", "time, all", _span(largest), "MACs, all", _span(far)]
    return [head, *rows]


def notes(comparison: Comparison) -> list[str]:
    """What was built for a size, and what could not be; each once."""
    rebuilt: dict[str, list[str]] = {}
    for row in comparison.rows:
        sizes = rebuilt.setdefault(row.entry.name, [])
        if row.rebuilt and (size := f"{row.height}x{row.width}") not in sizes:
            sizes.append(size)
    told = [
        f"{name} was built anew for {', '.join(sizes)}, with other parameters: weights of its own size do not fit as "
        "they are"
        for name, sizes in rebuilt.items()
        if sizes
    ]
    return list(dict.fromkeys([*told, *(f"not measured: {row.reason}" for row in comparison.unable)]))


def sources(comparison: Comparison) -> list[tuple[str, Published]]:
    """Name and published numbers of everything shown, each once, best first."""
    found = {entry.name: printed for entry in comparison.entries if (printed := printed_score(entry))}
    found |= {row.model: row for row in comparison.others}
    return sorted(found.items(), key=lambda pair: -pair[1].score)


def source_line(name: str, row: Published) -> str:
    """One of `sources` to read."""
    macs = "" if row.macs is None else f", {row.macs:g} GMACs"
    missing = "" if row.in_timm else "; not in timm, so not measured"
    return (
        f"{name}: {row.score:g} % top-1 at {row.size} px, {row.pretraining}, {row.parameters:g} M parameters{macs} "
        f"({row.source}{missing})"
    )


def where(comparison: Comparison) -> str:
    """Hardware and versions in a line."""
    found = comparison.environment
    place = found["processor"] if comparison.device == "cpu" else comparison.device
    versions = f"PyTorch {found['torch']}, timm {found['timm']}, davit {found['davit']}"
    rounds = min(row.speed.rounds for row in comparison.rows) if comparison.rows else 0
    return (
        f"{place}, {found['threads']} threads, {versions}, float32, batch {comparison.batch}, {rounds} rounds or more"
    )


def _exponents(growth: Growth) -> list[str]:
    return [f"{growth.exponent:.2f}", f"{growth.last:.2f}"]


def _span(sizes: Sequence[Size]) -> str:
    return " to ".join(str(height) if height == width else f"{height}x{width}" for height, width in sizes)


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "model": entry.name,
        "architecture": entry.model,
        "engine": entry.engine,
        "from": "timm" if entry.is_peer else "davit",
    }


def _grown(growth: Growth | None) -> dict[str, Any] | None:
    return None if growth is None else to_json(growth)


def _row(row: Measured) -> dict[str, Any]:
    printed = printed_score(row.entry)
    return {
        **_entry(row.entry),
        "height": row.height,
        "width": row.width,
        **to_json(row.counts),
        **to_json(row.speed),
        "memory": to_json(row.memory) if row.memory else None,
        "rebuilt_for_size": row.rebuilt,
        "published": to_json(printed) if printed else None,
    }

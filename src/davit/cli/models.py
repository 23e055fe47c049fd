"""`davit models`: the variants and the public weights."""

import json as json_format
from typing import Annotated, Any


def main(arguments: list[str]) -> int:
    """Run the verb."""
    import tyro
    from tyro.conf import FlagCreatePairsOff, Positional, arg

    def models(pattern: Annotated[Positional[str], arg(metavar="PATTERN")] = "*", json: bool = False) -> int:
        """List models, their costs and their public weights.

        Parameters and multiply-adds (MACs) are for one image of the size given, with a head of 1000 classes
        (Florence-2 towers: none). Weights are loaded by name: davit.load("davit_tiny.msft_in1k").

        Args:
            pattern: Only names that hold this text, or match it as a shell pattern.
            json: Print as JSON.
        """
        rows = describe(pattern)
        print(json_format.dumps(rows, indent=2) if json else _table(rows))
        return 0

    return tyro.cli(models, prog="davit models", args=arguments, config=(FlagCreatePairsOff,))


def describe(pattern: str) -> list[dict[str, Any]]:
    """What is known of the variants whose name, or a name of whose weights, matches.

    Raises:
        ValueError: none does.
    """
    import fnmatch

    from davit.models.variants import VARIANTS
    from davit.naming import unknown_name
    from davit.weights.catalog import WEIGHTS

    glob = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    rows = []
    for name in VARIANTS:
        weights = [entry for entry in WEIGHTS.values() if entry.variant == name]
        if fnmatch.filter([name, *(entry.name for entry in weights)], glob):
            rows.append(_row(name))
    if not rows:
        raise unknown_name("model", pattern, [*VARIANTS, *WEIGHTS])
    return rows


def _row(name: str) -> dict[str, Any]:
    from davit.models.complexity import count_macs, count_parameters
    from davit.models.variants import IMAGE_SIZES, VARIANTS
    from davit.weights.catalog import WEIGHTS

    config, size = VARIANTS[name], IMAGE_SIZES[name]
    classes = 1000 if config.channel_scale == "channels" else None
    return {
        "name": name,
        "parameters": count_parameters(config, classes),
        "macs": count_macs(config, size, size, classes),
        "size": size,
        "num_classes": classes,
        "weights": [
            {
                "name": entry.name,
                "score": entry.score,
                "top1": entry.top1,
                "licence": entry.licence,
                "url": entry.url,
                "note": entry.note,
            }
            for entry in WEIGHTS.values()
            if entry.variant == name
        ],
    }


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'name':<22} {'parameters':>10} {'MACs':>8} {'px':>4}  public weights"]
    for row in rows:
        costs = f"{row['parameters'] / 1e6:>9.1f}M {row['macs'] / 1e9:>7.1f}G {row['size']:>4}"
        told = [_weights(entry) for entry in row["weights"]] or [""]
        lines.append(f"{row['name']:<22} {costs}  {told[0]}".rstrip())
        lines += [" " * 49 + more for more in told[1:]]
    return "\n".join(lines)


def _weights(entry: dict[str, Any]) -> str:
    return f"{entry['name']} ({entry['score'] or 'tower'}; {entry['licence']})"

"""What a model is, what it learned from, and what a reader of its scores should know."""

import json
import os
from pathlib import Path

from davit.train.run import RunResult, environment

REPLACED = 10  # of the files that were replaced, named in the report


def read_environment(folder: Path) -> dict[str, str]:
    """What the run began on, from its folder; nothing where that cannot be read."""
    try:
        values = json.loads((folder / "environment.json").read_text())
    except (OSError, ValueError):
        return {}
    return {key: ", ".join(map(str, v)) if isinstance(v, list) else str(v) for key, v in values.items() if v != []}


def notes_of(result: RunResult) -> tuple[str, ...]:
    """What a reader of the scores should know."""
    skipped, unreadable = result.metrics["skipped_steps"], result.metrics["unreadable_samples"]
    notes = list(result.images.notes)
    if skipped:
        notes.append(f"{skipped:,} steps were skipped, for their loss or gradient was not finite; the log names them.")
    if unreadable:
        named = "; ".join(result.metrics["replaced_files"][:REPLACED])
        notes.append(f"{unreadable:,} training samples could not be read and were replaced: {named}.")
    return tuple(notes)


def model_card(result: RunResult) -> dict[str, str]:
    """What the model is, what it learned from, what it took."""
    recipe, metrics, machine = result.recipe, result.metrics, environment()
    size = recipe.data.image_size
    return {
        "Variant": recipe.model.variant + (f", started from {recipe.model.init}" if recipe.model.init else ""),
        "Parameters": f"{metrics['parameters']:,}",
        "Multiply-adds per image": f"{metrics['macs']:,}",
        "Image size": f"{size} x {size}, {recipe.data.channels} channel{'s' if recipe.data.channels > 1 else ''}",
        "Data": recipe.data.root or "the built-in handwritten digits (scikit-learn), fixed split",
        "Training": f"{recipe.schedule.total_epochs} epochs, {metrics['steps']} steps of {recipe.data.batch_size}",
        "Time": f"{metrics['seconds']:.0f} s, {metrics['images_per_second']:.0f} images/s, evaluation included",
        "Hardware": ", ".join(machine["gpus"]) or f"{machine['processor']}, {os.cpu_count()} CPUs",
        "Versions": f"davit {machine['davit']}, torch {machine['torch']}, Python {machine['python']}",
        "Command": machine["command"],
        "Seed": str(recipe.runtime.seed),
    }

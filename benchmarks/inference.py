"""DaViT by every engine on the CPU: speed in turns, error, memory and start-up, with the same weights and images.

    python benchmarks/inference.py [--variant davit_tiny] [--checkpoint FILE] [--cases 8x224 1x224] [--rounds 15]
        [--contenders native,timm,...] [--threads 2] [--seconds 0.5] [--folder DIR] [--no-children] [--out FILE]

Contenders: our eager model, the native engine in float32 and int8, timm eager and compiled with freezing, ONNX Runtime
and OpenVINO with both hints, the last two from our files and from timm's model, OpenVINO in int8 by NNCF, too. Each has
its best setting: so many threads, compiled or reshaped for the very shape, and warm. All answers are checked against
our eager model first: in float32 to 1e-3 of the largest logit, in int8 the error is told (weights are random unless
--checkpoint gives trained ones, so that it says little).

A round measures the processor's peak (multiply-adds on registers, peak.cpp) and a 2,048-wide product of PyTorch, then
gives each contender a turn of --seconds at least. Ratios are medians of the ratio inside a round, with least and most.
The throughput hint of OpenVINO computes several batches at once; its time is that of one of them.

Memory and start-up come from a fresh process for each contender: the peak of resident memory while it opens the model
and computes three batches over what was resident before, all imports done; the working memory, the peak while it
computes over what the open model holds, which are the activations; and the seconds to the first answer, the least of
three processes, so that caches are warm. --folder keeps the files for the next time.
"""

import argparse
import gc
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import davit
from davit.inference.memory import give_back
from davit.models.complexity import count_macs
from davit.models.create import create_model
from inference_contenders import FITTED, Case, Contender, contenders, keep_memory, noise, prepare, relative_error
from peak import peak_flops
from record import write_record

GAP = 0.05  # seconds between turns: threads of the last one go on spinning for a while
FIRSTS = ("openvino_latency", "timm")  # what others are compared with, beside the best of a kind
TOLERANCE = 1e-3


def spread(values: list[float], digits: int = 3) -> list[float]:
    """Median, least and most."""
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def turn(contender: Contender, images: Tensor, seconds: float) -> float:
    """Seconds of a batch."""
    time.sleep(GAP)
    started = time.perf_counter()
    calls = 0
    while calls == 0 or time.perf_counter() - started < seconds:
        contender.turn(images)
        calls += 1
    return (time.perf_counter() - started) / (calls * contender.batches)


def open_all(names: list[str], folder: Path, case: Case, images: Tensor) -> tuple[dict[str, Contender], dict[str, Any]]:
    """Open contenders and check their answers; what cannot be had is told and left out."""
    made: dict[str, Contender] = {}
    notes: dict[str, Any] = {}
    wanted = davit.load(folder / "model.safetensors")(images)
    for name in names:
        try:
            contender = contenders()[name][0](folder, case)
            found = contender.run(images)
        except Exception as error:
            notes[name] = {"left_out": str(error).strip().splitlines()[0][:200]}
            continue
        error = float((found - wanted).abs().max() / wanted.abs().max())
        notes[name] = {"largest_error": error, "relative_error": relative_error(found, wanted)}
        if "int8" not in name and not error <= TOLERANCE:
            raise SystemExit(f"{name} gives another answer than the model: logits differ by {error:.2g} of the largest")
        made[name] = contender
    return made, notes


def measure(made: dict[str, Contender], images: Tensor, case: Case, rounds: int, seconds: float) -> dict[str, Any]:
    """Peak, product and seconds of a batch of each contender, in rounds after one that does not count."""
    square = torch.randn(2048, 2048)
    peaks: list[float] = []
    products: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in made}
    for round_ in range(rounds + 1):
        time.sleep(GAP)
        peak = peak_flops(case.threads)
        product = 0.0
        for _ in range(3):
            started = time.perf_counter()
            square @ square
            product = max(product, 2 * 2048**3 / (time.perf_counter() - started))
        order = list(made)[round_ % len(made) :] + list(made)[: round_ % len(made)]  # nobody always follows the same
        found = {name: turn(made[name], images, seconds) for name in order}
        if round_:
            peaks.append(peak)
            products.append(product)
            for name, spent in found.items():
                times[name].append(spent)
    return {"peaks": peaks, "products": products, "times": times}


def rows(measured: dict[str, Any], operations: float) -> dict[str, Any]:
    """Sum up: milliseconds, share of the peak, and speed of each over the peers."""
    times: dict[str, list[float]] = measured["times"]
    peers = {name: times[name] for name in FIRSTS if name in times}
    for kind in ("openvino", "openvino_int8"):  # the better hint and source
        alike = [name for name in times if name.startswith("openvino") and ("int8" in name) == ("int8" in kind)]
        if alike:
            best = min(alike, key=lambda name: statistics.median(times[name]))
            peers[f"best_{kind} ({best})"] = times[best]
    found: dict[str, Any] = {}
    for name, spent in times.items():
        shares = [operations / seconds / peak for seconds, peak in zip(spent, measured["peaks"], strict=True)]
        found[name] = {
            "milliseconds": spread([1e3 * seconds for seconds in spent], 2),
            "share_of_peak": spread(shares),
            "times": {
                peer: spread([theirs / ours for theirs, ours in zip(other, spent, strict=True)])
                for peer, other in peers.items()
            },
        }
    return found


def resident(field: str) -> int:
    """Bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def child(name: str, case: Case, folder: Path) -> dict[str, float]:
    """Memory and start-up of one contender, in a process of its own."""
    torch.set_num_threads(case.threads)
    images = noise((case.batch, 3, case.side, case.side))
    if name.startswith(("openvino", "onnxruntime")):  # imports are no part of a model
        __import__(name.partition("_")[0])
    if name.startswith("timm"):
        __import__("timm")
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far; see proc(5)
    started = time.perf_counter()
    with torch.inference_mode():
        contender = contenders()[name][0](folder, case)
        ready, opening = time.perf_counter(), resident("VmHWM")
        gc.collect()
        give_back()
        opened = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        asked = time.perf_counter()
        contender.run(images)
        first = time.perf_counter() - asked + ready - started
        for _ in range(2):
            contender.turn(images)
    peak = resident("VmHWM")
    return {
        "first_answer_seconds": first,
        "mebibytes": (max(peak, opening) - before) / 2**20,
        "working_mebibytes": (peak - opened) / 2**20,
    }


def children(name: str, case: Case, folder: Path) -> dict[str, float]:
    """The least of three processes."""
    question = json.dumps([name, case.batch, case.side, case.threads, str(folder)])
    answers = []
    for _ in range(3):
        command = [sys.executable, __file__, "--child", question]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {}
        answers.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: round(min(answer[key] for answer in answers), 3) for key in answers[0]}


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure all cases."""
    names = options.contenders.split(",") if options.contenders else list(contenders())
    if unknown := [name for name in names if name not in contenders()]:
        raise SystemExit(f"no contender {', '.join(unknown)}; there are {', '.join(contenders())}")
    torch.manual_seed(0)
    model = davit.load(options.checkpoint) if options.checkpoint else create_model(options.variant).eval()
    cases = [(int(batch), int(side)) for batch, side in (case.split("x") for case in options.cases)]
    prepare(folder, model, options.variant, names, noise((FITTED, 3, cases[0][1], cases[0][1])))
    report: dict[str, Any] = {"variant": options.variant, "rounds": options.rounds, "cases": []}
    for batch, side in cases:
        case = Case(batch=batch, side=side, threads=options.threads)
        images = noise((batch, 3, side, side))
        with torch.inference_mode():
            made, notes = open_all(names, folder, case, images)
            measured = measure(made, images, case, options.rounds, options.seconds)
        found = rows(measured, 2 * batch * count_macs(model.config.backbone, side, side, model.config.num_classes))
        for name, row in found.items():
            notes[name] |= row
            print(f"{batch}x{side} {name:<28} {json.dumps(row)}", flush=True)
        if not options.no_children:
            for name in made:
                notes[name] |= children(name, case, folder)
                print(f"{batch}x{side} {name:<28} {json.dumps(notes[name])}", flush=True)
        gigaflops = {key: spread([x / 1e9 for x in measured[f"{key}s"]], 1) for key in ("peak", "product")}
        report["cases"].append({"batch": batch, "side": side, "gigaflops": gigaflops, "contenders": notes})
    return report


def main() -> None:
    """Compare, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="davit_tiny")
    parser.add_argument("--checkpoint", type=Path, help="of that variant")
    parser.add_argument("--cases", nargs="+", default=["8x224", "1x224"], help="batch x image side")
    parser.add_argument("--contenders", help="names, divided by commas; by default all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--no-children", action="store_true", help="without memory and start-up")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, batch, side, threads, folder = json.loads(options.child)
        print(json.dumps(child(name, Case(batch=batch, side=side, threads=threads), Path(folder))))
        return
    torch.set_num_threads(options.threads)
    keep_memory()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        report = compare(options, folder)
    write_record(report, options.out, show=True)


if __name__ == "__main__":
    main()

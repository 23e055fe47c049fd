"""Peak memory of the contrastive loss and its backward pass on one process, by the pairs in a batch.

    python benchmarks/contrastive_memory.py --batches 4096 16384 32768 --out memory.json

Each batch runs in a process of its own. `plain` holds the whole matrix of similarities, as if it were one part.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from davit.tasks.contrastive import unicl_loss
from record import write_record

MIB = 2**10  # of ru_maxrss


def measure(batch: int, embedding: int, rows: int) -> dict[str, float]:
    """Peak of the process beyond what it had before, in MiB, and seconds."""
    torch.manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, batch, embedding), dim=-1)
    images, texts, scale = images.requires_grad_(), texts.requires_grad_(), torch.tensor(14.0, requires_grad=True)
    small = images[:8].detach().clone().requires_grad_()
    unicl_loss(small, texts[:8].detach(), scale, torch.arange(8), rows=rows).backward()  # what is loaded on first use
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    loss = unicl_loss(images, texts, scale, torch.arange(batch), rows=rows)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"mib": round((peak - before) / MIB, 1), "seconds": round(seconds, 2), "loss": float(loss.detach())}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 16384, 32768])
    parser.add_argument("--embedding", type=int, default=512)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--plain-up-to", type=int, default=8192, help="largest batch whose whole matrix is held")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.batches[0], options.embedding, options.rows)))
        return
    found = []
    for batch in options.batches:
        kinds = {"parts": options.rows} | ({"plain": batch} if batch <= options.plain_up_to else {})
        for kind, rows in kinds.items():
            command = [sys.executable, __file__, "--one", "--batches", str(batch), "--rows", str(rows)]
            done = subprocess.run([*command, "--embedding", str(options.embedding)], capture_output=True, check=True)
            found.append({"batch": batch, "kind": kind, "rows": rows} | json.loads(done.stdout))
            print(found[-1], flush=True)
    write_record({"embedding": options.embedding, "measured": found}, options.out)


if __name__ == "__main__":
    main()

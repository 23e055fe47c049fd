"""Graphics cards: what the system has, what PyTorch sees, and whether it computes right."""

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

from davit.inference.doctor.check import Check, failed, gibibytes

ALLOWED = 1e-2  # relative, of a matrix product in float32, which may be computed in TF32
_DRIVER = "nvidia-smi"
_WAIT = 20  # seconds; a driver that hangs answers never


def check_graphics() -> Iterator[Check]:
    """Each card with memory and compute capability, and a matrix product on it against the CPU's."""
    import torch

    cards = _cards_of_the_driver()
    if not torch.cuda.is_available():
        yield _unseen(cards, torch.version.cuda)
        return
    for index in range(torch.cuda.device_count()):
        try:
            yield _card(torch, index)
        except Exception as error:
            remedy = (
                "update the driver, or install the PyTorch that fits it (pytorch.org); --device cpu works meanwhile"
            )
            yield failed(f"card {index}", error, remedy)
    if len(cards) > torch.cuda.device_count():
        told = f"the driver has {len(cards)} cards, PyTorch sees {torch.cuda.device_count()}"
        yield Check(level="warning", name="cards", told=told, remedy="look at the variable CUDA_VISIBLE_DEVICES")


def _card(torch: Any, index: int) -> Check:
    about = torch.cuda.get_device_properties(index)
    capability = f"{about.major}.{about.minor}"
    told = f"{about.name}, {gibibytes(about.total_memory)}, compute capability {capability}, CUDA {torch.version.cuda}"
    if f"sm_{about.major}{about.minor}" not in torch.cuda.get_arch_list():
        told += f"; this PyTorch has code for {', '.join(torch.cuda.get_arch_list())}"
    difference = _product_error(torch, f"cuda:{index}")
    told += f"; a matrix product differs by {difference:.1g} from the CPU's"
    if not difference <= ALLOWED:
        remedy = "the card or its driver computes wrong numbers: compute with --device cpu, and test the card's memory"
        return Check(level="problem", name=f"card {index}", told=told, remedy=remedy)
    return Check(level="ok", name=f"card {index}", told=told)


def _product_error(torch: Any, device: str) -> float:
    matrix = torch.randn(512, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    product = matrix @ matrix
    found = matrix.float().to(device) @ matrix.float().to(device)
    return float((found.double().cpu() - product).abs().max() / product.abs().max())


def _unseen(cards: list[str], cuda: str | None) -> Check:
    """No card that PyTorch can use: there may be none, or PyTorch may be the wrong one for it."""
    if not cards:
        return Check(level="ok", name="graphics cards", told="none; models compute on the CPU")
    told = f"{', '.join(cards)}: not seen by PyTorch, "
    if cuda is None:
        told += "which is built for CPUs only"
        remedy = "install the PyTorch for your CUDA version: pytorch.org/get-started names the command"
    else:
        told += f"which is built for CUDA {cuda}"
        remedy = "update the driver, or look at the variable CUDA_VISIBLE_DEVICES"
    return Check(level="warning", name="graphics cards", told=told, remedy=remedy)


def _cards_of_the_driver() -> list[str]:
    """Names of NVIDIA's cards; nothing where there is no driver, or it fails."""
    if not shutil.which(_DRIVER):
        return []
    command = [_DRIVER, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_WAIT)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]

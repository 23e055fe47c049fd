"""Muon: matrices move by their orthogonalised momentum, everything else by AdamW."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from davit.train.parallel import whole

MOMENTUM = 0.95
STEPS = 3  # five are usual; three learned nearly as much (docs/results.md) with three fifths of the work
_Matrix = tuple[nn.Parameter, dict[str, Any]]  # and the group that it belongs to
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0 of those that keep [0, 1] near 1 (the Muon note)
_SHARE_OF_ADAMW = 0.2  # root mean square of an update of AdamW over the rate (arXiv 2502.16982, section 2.2)
_AT_ONCE = 2**26  # numbers orthogonalised together: whole matrices of a sharded model are not held all at once


def multiplies_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices of bf16 by instructions of its own, faster than those of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # not public; without it fp32 is always right
    return device.type == "cpu" and known is not None and known()


def orthogonalise(matrices: Tensor, steps: int = STEPS, dtype: torch.dtype | None = None) -> Tensor:
    """Bring the singular values of matrices near 1 and keep their directions, by Newton-Schulz iterations.

    Args:
        matrices: (n, rows, columns), of any scale.
        steps: iterations; singular values below 1/41 of the Frobenius norm are only enlarged after three.
        dtype: of the products and of what comes out; bf16 moves singular values by some hundredths. None for that of
            `matrices`.

    Returns:
        (n, rows, columns), singular values about 0.7 to 1.2; zeros stay zeros.
    """
    x = matrices.mT if matrices.shape[-2] > matrices.shape[-1] else matrices
    x = (x / x.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]).to(dtype or x.dtype)
    rows, columns = x.shape[1:]
    x = _factor(x @ x.mT, steps) @ x if 2 * rows <= columns else _iterate(x, steps)
    return x.mT if matrices.shape[-2] > matrices.shape[-1] else x


def _iterate(x: Tensor, steps: int) -> Tensor:
    """Apply `a + b g + c g^2` to x, where g = x x^T is taken anew each time."""
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _factor(gram: Tensor, steps: int) -> Tensor:
    """What the same iterations multiply x by, from x x^T alone: fewer products where x is at least twice as wide."""
    a, b, c = _COEFFICIENTS
    factor = None
    for step in range(steps):
        once = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        once.diagonal(dim1=1, dim2=2).add_(a)
        factor = once if factor is None else once @ factor
        if step < steps - 1:
            gram = once @ gram @ once
    assert factor is not None
    return factor


class Muon(torch.optim.AdamW):
    """AdamW whose groups marked `matrices` move by orthogonalised Nesterov momentum (Jordan and others, 2024).

    A matrix moves by `0.2 sqrt(max(rows, columns))` times the rate, so that it moves as far as under AdamW and one rate
    and decay serve both (arXiv 2502.16982). Kernels count as matrices of (outputs, the rest). Several processes share
    the work, each matrix whole on one of them.

    Attributes:
        products: type of the products that orthogonalise; None for that of the parameters.
    """

    products: torch.dtype | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient; all processes together."""
        groups = self.param_groups
        matrices = [(p, g) for g in groups if g["matrices"] for p in g["params"] if p.grad is not None]
        for some in _parts(matrices):
            self._move(some)
        self.param_groups = [group for group in groups if not group["matrices"]]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def _move(self, some: list[_Matrix]) -> None:
        updates = _orthogonalised([whole(self._ahead(parameter)).flatten(1) for parameter, _ in some], self.products)
        for (parameter, group), update in zip(some, updates, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            rate = group["lr"] * _SHARE_OF_ADAMW * max(update.shape) ** 0.5
            parameter.sub_(_like(update.reshape(parameter.shape), parameter), alpha=rate)

    def _ahead(self, parameter: nn.Parameter) -> Tensor:
        """Take a gradient into the momentum; return where the next one would lead."""
        gradient, state = parameter.grad, self.state[parameter]
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        return gradient.lerp(state["momentum"].lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def _orthogonalised(matrices: list[Tensor], dtype: torch.dtype | None) -> list[Tensor]:
    """Orthogonalise this process's share of matrices that all have, alike ones together, and gather the others'."""
    many = distributed.is_initialized()
    rank, size = (distributed.get_rank(), distributed.get_world_size()) if many else (0, 1)
    shares = _share([matrix.shape for matrix in matrices], size)
    longest = max(sum(matrices[place].numel() for place in share) for share in shares)
    mine = matrices[0].new_zeros(longest, dtype=dtype)
    parts = dict(zip(shares[rank], _cut(mine, shares[rank], matrices), strict=True))
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for place in shares[rank]:
        alike[matrices[place].shape].append(place)
    for places in alike.values():
        together = orthogonalise(torch.stack([matrices[place] for place in places]), dtype=dtype)
        for place, result in zip(places, together, strict=True):
            parts[place].copy_(result)
    if size > 1:
        gathered = mine.new_empty(size * longest)
        distributed.all_gather_into_tensor(gathered, mine)
        for share, flat in zip(shares, gathered.chunk(size), strict=True):
            parts |= zip(share, _cut(flat, share, matrices), strict=True)
    return [parts[place] for place in range(len(matrices))]


def _cut(flat: Tensor, share: list[int], matrices: list[Tensor]) -> list[Tensor]:
    """Views of a vector as the matrices of a share, one after the other; what is left over belongs to none."""
    sizes = [matrices[place].numel() for place in share]
    pieces = flat[: sum(sizes)].split(sizes) if share else ()
    return [piece.view_as(matrices[place]) for place, piece in zip(share, pieces, strict=True)]


def _share(shapes: list[torch.Size], size: int) -> list[list[int]]:
    """Places of the matrices for each process: the costliest first, each to who has least to do."""
    costs = [min(shape) * shape.numel() for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0] * size
    for place in sorted(range(len(shapes)), key=lambda place: -costs[place]):
        least = loads.index(min(loads))
        shares[least].append(place)
        loads[least] += costs[place]
    return shares


def _parts(matrices: list[_Matrix]) -> Iterator[list[_Matrix]]:
    """Cut a list so that no part has much more than `_AT_ONCE` numbers."""
    part: list[_Matrix] = []
    numbers = 0
    for parameter, group in matrices:
        if part and numbers + parameter.numel() > _AT_ONCE:
            yield part
            part, numbers = part[:0], 0
        part.append((parameter, group))
        numbers += parameter.numel()
    if part:
        yield part


def _like(update: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of an update that every process has whole."""
    if isinstance(parameter, DTensor):
        return distribute_tensor(update, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return update

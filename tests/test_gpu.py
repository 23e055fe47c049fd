"""What only a GPU can show; skipped where there is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import davit
from davit.models.attention import channel_attention

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.mark.parametrize(("height", "width"), [(224, 224), (97, 131)])
def test_fp32_equals_the_cpu(height, width):
    model = davit.create_model("davit_tiny", num_classes=10).eval()
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(model.cuda()(images.cuda()).cpu(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_channel_logits_are_safe_at_36864_tokens(dtype):
    q, k, v = (8 * torch.randn(3, 1, 2, 36864, 32, device="cuda") + 4).to(dtype)
    exact = channel_attention(q.double(), k.double(), v.double(), 32**-0.5)
    with torch.autocast("cuda", dtype=dtype):
        result = channel_attention(q, k, v, 32**-0.5)
    assert result.isfinite().all()
    torch.testing.assert_close(result.double(), exact, rtol=0.02, atol=0.05)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_compiled_bf16_step_learns(gradient_checkpointing):
    torch._dynamo.reset()
    model = davit.create_model("davit_pico", num_classes=4, gradient_checkpointing=gradient_checkpointing).cuda()
    compiled = torch.compile(model, fullgraph=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    images, targets = torch.randn(8, 3, 64, 64, device="cuda"), torch.arange(8, device="cuda") % 4
    losses = []
    for _ in range(30):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = F.cross_entropy(compiled(images).float(), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_run_trains_on_the_gpu(tmp_path):
    from davit.recipes import make_recipe
    from davit.records import assign
    from davit.train.run import run

    recipe = assign(make_recipe("digits"), "runtime.device", "cuda")
    assert run(recipe, tmp_path / "run").metrics["top1"] >= 0.98


def test_matrices_are_orthogonalised_in_bf16_as_in_float64():
    from davit.train.muon import multiplies_bf16, orthogonalise

    assert multiplies_bf16(torch.device("cuda"))
    matrices = torch.randn(3, 48, 200, device="cuda")
    exact = orthogonalise(matrices.double())
    assert (orthogonalise(matrices, dtype=torch.bfloat16) - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_run_resumes_on_the_gpu(tmp_path, parallel, precision):
    """Half, stop, the rest; where sharded on one device, through NCCL."""
    if (parallel, precision) == ("fsdp", "fp16"):
        pytest.skip("refused: it would need a loss scale")
    done = subprocess.run(
        [sys.executable, "-c", RESUMING, str(tmp_path), parallel, precision],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, *rest = json.loads(done.stdout.splitlines()[-1])
    assert first == pytest.approx(0, abs=1e-6)  # the first loss after the resume
    assert max(rest) < 5e-3


RESUMING = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from davit.train.checkpoint import latest_point
from davit.train.distributed import joined
from davit.train.stop import TrainingStoppedError
from runs import make_trainer, stop_after, tiny_recipe
folder, parallel, precision = Path(sys.argv[1]), *sys.argv[2:]
recipe = tiny_recipe(runtime__device="cuda", runtime__parallel=parallel, runtime__precision=precision)

def watch(trainer, seen):
    gradients = trainer.stepper.gradients
    def noted(*arguments, **rest):
        loss, finite = gradients(*arguments, **rest)
        seen.append(loss)
        return loss, finite
    trainer.stepper.gradients = noted

with joined(recipe.runtime) as world:
    whole, parts = [], []
    trainer = make_trainer(recipe, folder / "whole", world)
    watch(trainer, whole)
    trainer.run()
    trainer = make_trainer(recipe, folder / "parts", world)
    watch(trainer, parts)
    stop_after(trainer, 10)
    try:
        trainer.run()
    except TrainingStoppedError:
        pass
    trainer = make_trainer(recipe, folder / "parts", world)
    trainer.resume(latest_point(folder / "parts", world))
    watch(trainer, parts)
    trainer.run()
print(json.dumps([abs(a - b) / a for a, b in zip(whole[10:], parts[10:], strict=True)]))
"""

"""What only a GPU can show; skipped where there is none."""

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

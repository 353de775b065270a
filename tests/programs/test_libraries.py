"""Libraries that say cuda, unchanged: each program runs under `bringup run --cuda`, in a process of its own."""

import copy
import json
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import bringup
from tests.conftest import slow

Run = Callable[..., "subprocess.CompletedProcess[str]"]

LIGHTNING = """
import lightning, torch, torchmetrics
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=2)

    def training_step(self, batch, index):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.accuracy.update(self.net(batch[0]), batch[1])
        self.log("accuracy", self.accuracy, on_epoch=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)

lightning.seed_everything(0)
x = torch.randn(512, 8)
data = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 64, pin_memory=True)
trainer = lightning.Trainer(
    max_epochs=6, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, precision="16-mixed",
)
trainer.fit(Model(), data, data)
assert trainer.strategy.root_device.type == "cuda"
assert trainer.callback_metrics["accuracy"] > 0.95
"""

ACCELERATE = """
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
assert accelerator.device.type == "cuda"
model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
x = torch.randn(512, 8)
data = DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), 64)
model, optimizer, data = accelerator.prepare(model, torch.optim.Adam(model.parameters(), 1e-2), data)
for _ in range(8):
    for a, b in data:
        with accelerator.accumulate(model):
            loss = nn.functional.cross_entropy(model(a), b)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
assert accelerator.gather(loss.detach()).item() < 0.3
"""

PEFT = """
import peft, torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
)
model = peft.get_peft_model(LlamaForCausalLM(config), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
model.to("cuda")
optimizer, ids = torch.optim.AdamW(model.parameters(), 1e-2), torch.randint(100, (2, 16), device="cuda")
losses = []
for _ in range(8):
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses == sorted(losses, reverse=True)
assert model.merge_and_unload()(ids).logits.is_cuda
"""

TORCHMETRICS = """
import torch, torchmetrics

torch.manual_seed(0)
p, t = torch.rand(200, 5), torch.randint(5, (200,))
for name in ("Accuracy", "AUROC", "F1Score", "ConfusionMatrix"):
    metric = getattr(torchmetrics, name)("multiclass", num_classes=5)
    expected = metric(p, t)
    metric.reset()
    found = metric.to("cuda")(p.cuda(), t.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected)
"""

TORCHAO = """
import copy, torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

torch.manual_seed(0)
model, x = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).eval(), torch.randn(8, 64)
for config in (Int8WeightOnlyConfig(), Int8DynamicActivationInt8WeightConfig()):
    on_cpu, on_chip = copy.deepcopy(model), copy.deepcopy(model).to("cuda")
    quantize_(on_cpu, config), quantize_(on_chip, config)
    with torch.no_grad():
        expected = on_cpu(x)
        for run in (on_chip, torch.compile(on_chip)):
            torch.testing.assert_close(run(x.cuda()).cpu(), expected, atol=1e-3, rtol=1e-3)
"""

SAFETENSORS = """
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

model, other = nn.Linear(4, 4).cuda(), nn.Linear(4, 4).cuda()
save_file(model.state_dict(), "a.safetensors")
assert load_file("a.safetensors")["weight"].device.type == "cpu"
assert load_file("a.safetensors", device="cuda")["weight"].is_cuda
save_model(model, "b.safetensors")
load_model(other, "b.safetensors")
assert torch.equal(model.weight, other.weight)
torch.save(model.state_dict(), "c.pt")
assert torch.load("c.pt", map_location="cuda")["weight"].is_cuda
assert not torch.load("c.pt", map_location="cpu")["weight"].is_cuda
"""

TORCH = """
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4)).cuda()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    data, optimizer = TensorDataset(torch.randn(64, 8), torch.randint(4, (64,))), torch.optim.Adam(model.parameters())
    for workers in (2, 0):
        for x, y in DataLoader(data, 16, num_workers=workers, persistent_workers=workers > 0, pin_memory=True):
            assert x.is_pinned()
            made = checkpoint_sequential(model, 2, x.cuda(non_blocking=True), use_reentrant=False)
            nn.functional.cross_entropy(made, y.cuda(non_blocking=True)).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.update_parameters(model)
    assert next(ema.parameters()).is_cuda and not torch.equal(ema.module[0].weight, model[0].weight)
    x = torch.randn(8, 8, device="cuda", requires_grad=True)
    checkpoint(model, x, use_reentrant=True).sum().backward()
    assert x.grad.is_cuda
"""

PROGRAMS = {
    "lightning": (LIGHTNING, ("lightning", "torchmetrics")),
    "accelerate": (ACCELERATE, ("accelerate",)),
    "peft": (PEFT, ("peft", "transformers")),
    "torchmetrics": (TORCHMETRICS, ("torchmetrics",)),
    "torchao": (TORCHAO, ("torchao",)),
    "safetensors": (SAFETENSORS, ("safetensors",)),
    "torch": (TORCH, ()),
}


@pytest.mark.parametrize("name", [*(name for name in PROGRAMS if name != "torchao"), *slow("torchao")])
def test_program_of_a_library_runs(name: str, bringup_run: Run, tmp_path: Path) -> None:
    program, needs = PROGRAMS[name]
    absent = [library for library in needs if find_spec(library) is None]
    if absent:
        pytest.skip(f"needs {', '.join(absent)}")
    (tmp_path / "program.py").write_text(program)
    done = bringup_run("--cuda", "--chip", "t4", "--out", "out", "program.py")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["launches"] >= 1 and summary["redirected"] and not summary["fallbacks"]


def test_gradients_per_sample_are_the_cpus() -> None:
    model, x = nn.Linear(8, 4), torch.randn(5, 8)

    def gradients(device: str) -> dict[str, torch.Tensor]:
        def loss(parameters: dict[str, torch.Tensor], one: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = functional_call(moved, parameters, one)
            return made.pow(2).sum()

        moved = copy.deepcopy(model).to(device)
        return vmap(grad(loss), (None, 0))(dict(moved.named_parameters()), x.to(device))

    with bringup.record():  # whose hooks look at parameters
        found = gradients("chip")
    for name, expected in gradients("cpu").items():
        torch.testing.assert_close(found[name].cpu(), expected)


def test_a_group_of_one(python: Run) -> None:
    done = python(GROUP)
    assert done.returncode == 0, done.stderr


GROUP = """
import os, torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor

distributed.init_process_group("gloo", init_method="file://" + os.path.abspath("store"), rank=0, world_size=1)
x = torch.ones(4, device="chip")
distributed.all_reduce(x)
into, parts = torch.zeros(4, device="chip"), [torch.zeros(4, device="chip")]
distributed.all_gather(parts, x)
distributed.all_gather_into_tensor(into, x)
distributed.broadcast(x, 0)
distributed.all_reduce(x, async_op=True).wait()
distributed.barrier()
assert all(tensor.device.type == "chip" and tensor.tolist() == [1.0] * 4 for tensor in (x, into, *parts))
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 4).to("chip"))
model(x).sum().backward()
assert model.module.weight.grad.device.type == "chip"
mesh = distributed.device_mesh.init_device_mesh("chip", (1,))
sharded = fully_shard(nn.Linear(4, 4).to("chip"), mesh=mesh)
sharded(x[None]).sum().backward()
assert sharded.weight.grad.full_tensor().tolist() == [[1.0] * 4] * 4
both = distribute_tensor(torch.eye(4, device="chip"), mesh, [Shard(0)])
assert (both @ both).full_tensor().tolist() == torch.eye(4).tolist()
distributed.destroy_process_group()
"""

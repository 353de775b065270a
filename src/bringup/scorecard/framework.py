"""A. The framework: tensors, operators, gradients, modules, optimizers, training."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bringup.scorecard.registry import Partial, item, require

SAMPLES = 2  # sample inputs per operator
OTHERS = {torch.float16: 2e-2, torch.bfloat16: 5e-2, torch.float64: 1e-7, torch.int64: 0.0}
# Parts of the names of operators with random results, and of results that differ by definition: memory that is not
# written, random regions, and the saved statistics of batch norm, which each device keeps in a form of its own.
_UNDEFINED = (
    *("empty", "new_empty", "bernoulli", "rand", "normal", "multinomial", "dropout", "uniform", "exponential"),
    *("cauchy", "geometric", "rrelu", "fractional_max_pool", "native_batch_norm", "_batch_norm_with_update"),
)

# Samples of these operators cannot be moved tensor by tensor: they need a whole storage, a device, or CPU indices.
_UNMOVABLE = {("as_strided", "partial_views"), ("to", ""), ("tensor_split", "")}


def close(a: Any, b: Any, tolerance: float = 1e-4) -> bool:
    """Return True if two results have the same structure, dtypes and shapes, and values within a tolerance."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        a, b = a.detach().cpu(), b.detach().cpu()
        if a.dtype != b.dtype or a.shape != b.shape:
            return False
        if a.layout != torch.strided:
            a, b = a.to_dense(), b.to_dense()
        exact = not (a.is_floating_point() or a.is_complex())
        return bool(torch.equal(a, b) if exact else torch.allclose(a, b, tolerance, tolerance, equal_nan=True))
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(close(x, y, tolerance) for x, y in zip(a, b, strict=True))
    return bool(a == b) or not isinstance(a, (int, float, bool))


_WIDE = {torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64}
_WIDE |= {torch.complex64: torch.complex128}
_is_exact = False


@contextmanager
def exactly() -> Iterator[None]:
    """Let `moved` return floating-point tensors in the widest dtype in it, so that results have less rounding."""
    global _is_exact
    _is_exact = True
    try:
        yield
    finally:
        _is_exact = False


def moved(value: Any, device: torch.device) -> Any:
    """Return an argument with every tensor moved to a device as a new leaf."""
    if isinstance(value, torch.Tensor):
        dtype = _WIDE.get(value.dtype, value.dtype) if _is_exact else value.dtype
        return value.detach().to(device, dtype).requires_grad_(value.requires_grad)
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        return type(value)(moved(item, device) for item in value)
    if isinstance(value, dict):
        return {name: moved(item, device) for name, item in value.items()}
    return device if isinstance(value, torch.device) else value


def opinfos(dtype: torch.dtype) -> Iterator[Any]:
    """Yield the operators of torch's database that the CPU supports with a dtype and that have defined results."""
    from torch.testing._internal.common_methods_invocations import op_db

    for op in op_db:
        random = any(word in op.name for word in _UNDEFINED) or op.name.startswith("jiterator")
        movable = (op.name, op.variant_test_name) not in _UNMOVABLE
        supported: Any = op.supported_dtypes
        if dtype in supported("cpu") and movable and not random:
            yield op


@contextmanager
def comparing() -> Iterator[None]:
    """Compare devices in it: without warnings, and with convolutions of float32 in float32.

    torch lets a CUDA device use TF32 in convolutions, but not in products.
    """
    cudnn: Any = torch.backends.cudnn
    settings = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    with warnings.catch_warnings(), cudnn.flags(**settings, allow_tf32=False):
        warnings.simplefilter("ignore")
        yield


def full_name(op: Any) -> str:
    """Name an operator of the database with its variant."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def share(names: list[str], failed: list[str], noun: str) -> str:
    """Return the counts as evidence; raise `Partial` if some names failed."""
    text = f"{len(names) - len(failed)} of {len(names)} {noun}"
    if failed:
        raise Partial(1 - len(failed) / max(len(names), 1), f"{text}; not: {', '.join(failed[:8])}")
    return text


def compare_ops(device: torch.device, dtype: torch.dtype, tolerance: float, *, stride: int, grad: bool = False) -> str:
    """Compare every n-th operator of the database with the CPU."""
    names, failed = [], []
    with comparing():
        for op in list(opinfos(dtype))[::stride]:
            if grad and not (op.supports_autograd and dtype in op.supported_backward_dtypes("cpu")):
                continue
            name = full_name(op)
            names.append(name)
            try:
                same = all(_same(op, sample, device, tolerance, grad) for sample in samples(op, dtype, grad))
            except Exception:
                same = False
            if not same:
                failed.append(name)
    return share(names, failed, f"operators in {str(dtype).split('.')[-1]}" + (" with gradients" if grad else ""))


def samples(op: Any, dtype: torch.dtype, grad: bool) -> Iterator[Any]:
    """Yield an operator's first sample inputs, on the CPU."""
    torch.manual_seed(0)
    for number, sample in enumerate(op.sample_inputs("cpu", dtype, requires_grad=grad)):
        if number == SAMPLES:
            return
        yield sample


def _same(op: Any, sample: Any, device: torch.device, tolerance: float, grad: bool) -> bool:
    results = []
    for where in (torch.device("cpu"), device):
        inputs, args, kwargs = (moved(part, where) for part in (sample.input, sample.args, sample.kwargs))
        torch.manual_seed(0)
        result = op(inputs, *args, **kwargs)
        if sample.output_process_fn_grad is not None:
            result = sample.output_process_fn_grad(result)
        if grad:
            leaves = [part for part in (inputs, *args) if isinstance(part, torch.Tensor) and part.requires_grad]
            outputs = list(result) if isinstance(result, (list, tuple)) else [result]
            differentiable = [part for part in outputs if isinstance(part, torch.Tensor) and part.requires_grad]
            if not differentiable or not leaves:
                return True
            total = sum((part.abs() if part.is_complex() else part).sum() for part in differentiable)
            result = list(torch.autograd.grad(total, leaves, allow_unused=True))  # type: ignore[arg-type]
        results.append(result)
    return close(results[0], results[1], tolerance)


@item("A1", "D", "import torch loads the device", hint="register an entry point of the group torch.backends")
def loads(device: torch.device) -> str:
    """``import torch`` alone makes the device known, and ``torch.accelerator`` names it."""
    torch.empty(1, device=device)
    if device.type == "cpu":
        return "the CPU is always available"
    current: Any = torch.accelerator.current_accelerator()
    require(
        current is not None and current.type == device.type, f"torch.accelerator names {current}, not {device.type}"
    )
    return f"torch.accelerator.current_accelerator() is {current}"


@item("A2", "D", "tensors", hint="implement the factory, copy and view operators; see pytorch's accelerator guide")
def tensors(device: torch.device) -> str:
    """Tensors are created, copied, printed, indexed, viewed and saved, and keep their values."""
    host = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    moved_tensor = host.to(device)
    require(moved_tensor.device.type == device.type, f"to({device}) returns a tensor on {moved_tensor.device}")
    require(torch.equal(moved_tensor.cpu(), host), "a copy to the device and back changes values")
    uses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "indexing": lambda t: t[1, :, ::2],
        "views": lambda t: t.transpose(0, 2).reshape(4, 6),
        "masks": lambda t: t[t > 5],
        "in-place": lambda t: t.clone().mul_(2),
        "factories": lambda t: torch.full_like(t, 3),
    }
    for name, function in uses.items():
        require(close(function(host), function(moved_tensor)), f"{name} has another result than on the CPU")
    require("[" in repr(moved_tensor), "printing shows no values")
    buffer = io.BytesIO()
    torch.save({"x": moved_tensor}, buffer)
    buffer.seek(0)
    loaded: Any = torch.load(buffer, weights_only=True)["x"]
    require(loaded.device.type == device.type and torch.equal(loaded.cpu(), host), "saving and loading changes it")
    return "created, copied, printed, indexed, viewed, saved and loaded"


@item("A3", "D", "operators in float32", hint="the names are those of torch's OpInfo database", seconds=400)
def operators(device: torch.device) -> str:
    """The operators of torch's OpInfo database have the same results as on the CPU in float32."""
    return compare_ops(device, torch.float32, 1e-3, stride=1)


@item("A4", "T", "operators in other dtypes", hint="look up the dtype in the support matrix", seconds=400)
def other_dtypes(device: torch.device) -> str:
    """Every fourth operator has the same results as on the CPU in half precision, bfloat16, double and int64."""
    scores, texts = [], []
    for dtype, tolerance in OTHERS.items():
        try:
            texts.append(compare_ops(device, dtype, tolerance, stride=4))
            scores.append(1.0)
        except Partial as error:
            texts.append(str(error))
            scores.append(error.score)
    if min(scores) < 1:
        raise Partial(sum(scores) / len(scores), "; ".join(texts))
    return "; ".join(texts)


@item(
    "A5",
    "T",
    "gradients of operators",
    hint="register derivatives, or let autograd see the aten operators",
    seconds=400,
)
def gradients(device: torch.device) -> str:
    """Every second differentiable operator has the same gradients as on the CPU in float32."""
    return compare_ops(device, torch.float32, 1e-3, stride=2, grad=True)


@item("A6", "T", "modules", hint="run the module named in the evidence on its own", seconds=300)
def modules(device: torch.device) -> str:
    """Every module of torch's module database has the same outputs and gradients as on the CPU."""
    from torch.testing._internal.common_modules import module_db

    names, failed = [], []
    with comparing():
        for info in module_db:
            # Some modules draw their own samples, others create their parameters at the first call.
            if torch.float32 not in info.dtypes or any(word in info.name for word in ("Dropout", "Fractional", "Lazy")):
                continue
            names.append(info.name)
            try:
                torch.manual_seed(0)
                cases = info.module_inputs_func(
                    info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
                )
                same = all(_module_same(info, case, device) for case in cases[:SAMPLES])
            except Exception:
                same = False
            if not same:
                failed.append(info.name)
    return share(names, failed, "modules")


def _module_same(info: Any, case: Any, device: torch.device) -> bool:
    torch.manual_seed(0)
    build, call = case.constructor_input, case.forward_input
    if call is None:
        return True
    reference = info.module_cls(*build.args, **build.kwargs)
    copied = info.module_cls(*moved(build.args, device), **moved(build.kwargs, device)).to(device)
    copied.load_state_dict(reference.state_dict())
    results = []
    for module, where in ((reference, torch.device("cpu")), (copied, device)):
        out = module(*moved(call.args, where), **moved(call.kwargs, where))
        first = out if isinstance(out, torch.Tensor) else torch.utils._pytree.tree_leaves(out)[0]
        grads: list[Any] = []
        if first.requires_grad and any(p.requires_grad for p in module.parameters()):
            first.sum().backward()
            grads = [parameter.grad for parameter in module.parameters()]
        results.append([first, *grads])
    return close(results[0], results[1], 1e-3)


@item("A7", "T", "optimizers", hint="optimizers use the _foreach operators: run them one by one")
def optimizers(device: torch.device) -> str:
    """Every optimizer of torch's optimizer database makes the same steps as on the CPU."""
    from torch.testing._internal.common_optimizers import optim_db

    names, failed = [], []
    for info in optim_db:
        name = str(getattr(info.optim_cls, "__name__", info.optim_cls))
        if name in ("SparseAdam", "LBFGS"):
            continue
        names.append(name)
        try:
            expected, parameters = (_optimised(info.optim_cls, where) for where in (torch.device("cpu"), device))
            same = close(expected, parameters, 1e-3)
        except Exception:
            same = False
        if not same:
            failed.append(name)
    return share(names, failed, "optimizers")


def _optimised(kind: Any, device: torch.device) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
    weights = [p for p in model.parameters() if p.dim() == 2]
    optimizer = kind(weights if kind.__name__ == "Muon" else model.parameters(), lr=0.01)
    x = torch.randn(16, 4).to(device)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [parameter.detach() for parameter in model.parameters()]


def train(device: torch.device, *, steps: int = 20, forward: Callable[[nn.Module], Any] = lambda model: model) -> float:
    """Train a small network and return its last loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.LayerNorm(64), nn.Linear(64, 4)).to(device)
    wrapped = forward(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    x, y = torch.randn(64, 16).to(device), torch.randint(4, (64,)).to(device)
    loss = torch.zeros(())
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(wrapped(x), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


@item("A8", "T", "an unmodified training script", hint="compare the losses step by step to find the first difference")
def training(device: torch.device) -> str:
    """A training loop reaches the loss of the CPU within a thousandth."""
    expected, loss = train(torch.device("cpu")), train(device)
    require(abs(loss - expected) <= 1e-3 * abs(expected), f"loss {loss:.6f}, on the CPU {expected:.6f}")
    return f"loss {loss:.6f}, on the CPU {expected:.6f}"


@item("A9", "T", "torch.compile", hint="register the device with Inductor, or register its own backend", seconds=300)
def compiled(device: torch.device) -> str:
    """``torch.compile`` with default arguments trains to the eager loss; partial if only ``aot_eager`` works."""
    expected = train(device, steps=3)
    try:
        loss = train(device, steps=3, forward=torch.compile)
        require(abs(loss - expected) <= 1e-3 * abs(expected), f"loss {loss:.6f} compiled, {expected:.6f} eager")
        return f"loss {loss:.6f} compiled, {expected:.6f} eager"
    except Exception as error:
        torch.compiler.reset()
        loss = train(device, steps=3, forward=lambda model: torch.compile(model, backend="aot_eager"))
        require(abs(loss - expected) <= 1e-3 * abs(expected), "neither inductor nor aot_eager compiles it")
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Partial(0.5, f"backend='aot_eager' works, the default does not: {reason}") from None


@item(
    "A10", "T", "autocast, seeds, checkpoints", hint="register autocast, a generator and serialisation for the device"
)
def habits(device: torch.device) -> str:
    """Autocast computes products in bfloat16, a seed repeats random numbers, a checkpoint moves between devices."""
    with torch.autocast(device.type, dtype=torch.bfloat16):
        product = torch.ones(4, 4, device=device) @ torch.ones(4, 4, device=device)
    require(product.dtype == torch.bfloat16, f"autocast computes in {product.dtype}")
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(torch.randn(100, device=device).cpu())
    require(torch.equal(*draws), "torch.manual_seed does not repeat the device's random numbers")
    require(draws[0].std() > 0.5, "random numbers do not vary")
    buffer = io.BytesIO()
    torch.save(nn.Linear(4, 4).to(device).state_dict(), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, map_location="cpu", weights_only=True)
    require(all(value.device.type == "cpu" for value in loaded.values()), "map_location='cpu' has no effect")
    return "autocast computes in bfloat16, seeded numbers repeat, a checkpoint was loaded on the CPU"

"""The seconds of a step from the user's own forward pass, recorded dry at a few numbers of tokens.

Note [The forward pass of an engine]
An engine does not run a model as it is written (vLLM's and TensorRT-LLM's model code):

- Its KV cache is paged, so no step copies keys and values, and a batch has no padding. The forward pass is recorded
  without a cache. Its attention is priced apart, for the tokens that each request has.
- Products that read the same input are one product: query, key and value; gate and up.
- What stands between two products is one kernel, which reads and writes each tensor once.
- A step that only decodes is a recorded graph. The other steps keep the chip as busy.
- Only the last token of a prompt needs logits, which a sampler reads.
"""

from __future__ import annotations

import functools
import gc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils._pytree import tree_map_only

from bringup import pricing
from bringup.analyse.chains import as_one_kernel
from bringup.analyse.holders import usage
from bringup.cost import FAMILIES, Signature
from bringup.cost.signature import Tensor
from bringup.device import dry as dryrun
from bringup.device.load import use
from bringup.errors import BringupError
from bringup.machine.files import available_chips, load_chip
from bringup.machine.topology import cluster_of
from bringup.pricing.collective import collective_seconds
from bringup.recording.recording import record, step
from bringup.recording.rows import LAUNCH
from bringup.recording.trace import Trace
from bringup.serving.steps import Chunk, extended
from bringup.text import short
from bringup.timeline.replay import Timeline, WhatIf, replay

if TYPE_CHECKING:
    from bringup.machine.schema import Chip, Host

Array = npt.NDArray[Any]
# Tokens of the recorded steps; chosen: between two of them, the price of a product is nearly straight.
TOKENS = (*(1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 160, 192, 256, 320, 384, 512, 640, 768), *range(1024, 4097, 256))
CONTEXTS = (16, 64, 256, 1024, 4096, 16384, 65536)  # tokens in a cache; chosen: attention is straight between them
LIGHT = ("pointwise", "copy", "random", "reduction", "normalization", "softmax")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Recorded:
    """What was recorded of a model.

    Attributes:
        name: of its class.
        prompts: by tokens, one prompt whose last token has logits.
        decodes: by requests, one token of each.
        samples: by requests, the choice of the next tokens from logits; empty if the model returns none.
        weight_bytes: of parameters and buffers.
    """

    name: str
    prompts: Mapping[int, Trace]
    decodes: Mapping[int, Trace]
    samples: Mapping[int, Trace]
    weight_bytes: int

    @cached_property
    def attention(self) -> list[tuple[Signature, int]]:
        """The kinds of attention in the model, and how many layers have each."""
        trace = self.prompts[max(self.prompts)]
        columns = trace.columns
        number = columns["signature"][columns["kind"] == LAUNCH]
        counts = np.bincount(number[_is_family(trace, "attention")[number]], minlength=len(trace.signatures))
        return [(trace.signatures[i], int(counts[i])) for i in np.flatnonzero(counts).tolist()]

    def token_bytes(self, chips: int = 1) -> int:
        """Bytes of the keys and values of one token on each of several chips, which have whole heads.

        Chips beyond the number of heads have copies of them.
        """
        total = 0
        for signature, layers in self.attention:
            key, value = signature.required("key"), signature.required("value")
            heads = key.shape[1] if len(key.shape) > 2 else 1
            total += layers * -(-heads // chips) * (key.shape[-1] * key.item_bytes + value.shape[-1] * value.item_bytes)
        return total

    @cached_property
    def working_bytes(self) -> int:
        """Bytes beside the weights at the peak of the longest recorded step."""
        trace = self.prompts[max(self.prompts)]
        return max(usage(trace, trace.steps.ends).peak_bytes - self.weight_bytes, 0)


def load(text: str) -> Callable[[], Any]:
    """Return the function that ``model.py:name`` names; without a name it is ``model``.

    Raises:
        BringupError: there is no such file or function, or the file fails.
    """
    file, _, name = text.rpartition(":") if not text.endswith(".py") else (text, "", "model")
    path = Path(file)
    if not path.is_file():
        raise BringupError(f"{text}: there is no such file: write model.py:name, where name returns the model")
    spec = importlib.util.spec_from_file_location(f"bringup_served_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise BringupError(f"{text}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    # Both stay: dataclasses look up their module, and the function may import modules beside its file.
    sys.modules[spec.name] = module
    if str(path.resolve().parent) not in sys.path:
        sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BringupError(f"{path}: failed with {type(error).__name__}: {short(str(error), 200)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise BringupError(f"{path}: has no function {name}: write model.py:name, where name returns the model")
    return function  # type: ignore[no-any-return]


def record_forward(model: Any, budget: int, requests: int) -> Recorded:
    """Record a model's forward pass dry.

    Args:
        model: what `built` returns.
        budget: the most tokens of a step.
        requests: the most requests that decode.

    Raises:
        BringupError: the model cannot be called.
    """
    with dryrun.dry(), torch.no_grad():
        prompts = {tokens: _record(model, 1, tokens)[0] for tokens in _grid(budget)}
        decodes, samples = {}, {}
        for number in _grid(requests):
            decodes[number], result = _record(model, number, 1)
            logits = getattr(result, "logits", result)
            if isinstance(logits, torch.Tensor) and logits.is_floating_point() and logits.dim() > 1:
                samples[number] = _record_sampler(logits)
    return Recorded(type(model).__name__, prompts, decodes, samples, _weight_bytes(model))


def record_batches(model: Any, most: int) -> dict[int, Trace]:
    """Record a module with ``example(batch)`` dry, for several sizes of a batch.

    Raises:
        BringupError: the module cannot be called.
    """
    with dryrun.dry(), torch.no_grad():
        return {batch: _record(model, batch, None)[0] for batch in _grid(most)}


def _weight_bytes(model: Any) -> int:
    storages = [item.untyped_storage() for item in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def has_tokens(model: Any) -> bool:
    """Return False for a module whose ``example`` takes only a batch."""
    return not hasattr(model, "example") or len(inspect.signature(model.example).parameters) > 1


def _use_chip() -> None:
    """Choose a chip for the recording, which any chip's prices can be taken from, unless the process has one."""
    if not hasattr(torch.ops.bringup, "is_open") or not (
        torch.ops.bringup.is_open() or torch.ops.bringup.is_configured()
    ):
        largest = max(available_chips(), key=lambda name: load_chip(name).device_bytes)
        use(largest, past_capacity=True)


def _grid(most: int) -> list[int]:
    return [*(tokens for tokens in TOKENS if tokens < most), most]


def built(build: Callable[[], Any], dtype: str = "auto") -> Any:
    """Build a model on the chip, without values.

    Args:
        build: returns a causal language model of transformers, or a module with ``example``.
        dtype: of the weights; ``auto`` is the model's, and bfloat16 for a language model in float32, as engines do.

    Raises:
        BringupError: it fails, or returns something else.
    """
    _use_chip()
    gc.collect()  # so that a recording does not hold what a model before it has left
    torch.chip.empty_cache()  # type: ignore[attr-defined]
    try:
        with dryrun.dry(), torch.device("meta"):
            model = build()
    except BringupError:
        raise
    except Exception as error:
        raise BringupError(f"the model cannot be built: {type(error).__name__}: {short(str(error), 200)}") from error
    if not isinstance(model, torch.nn.Module):
        raise BringupError(f"the function must return a torch.nn.Module, got {type(model).__name__}")
    if not hasattr(model, "example") and not hasattr(model, "config"):
        raise BringupError(
            f"{type(model).__name__} is no model of transformers: give it a method example(batch, tokens) "
            "that returns its inputs"
        )
    own = next((item.dtype for item in model.parameters() if item.is_floating_point()), torch.float32)
    by_engine = torch.bfloat16 if own == torch.float32 and has_tokens(model) else own
    chosen = DTYPES.get(dtype, by_engine)
    with dryrun.dry(), torch.no_grad():
        model = model.to(chosen).to_empty(device="chip").eval()
    if chosen != own and hasattr(model, "example"):
        with_example: Any = model
        with_example.example = _cast(with_example.example, own, chosen)
    if hasattr(model, "tie_weights"):  # `to_empty` gives every parameter its own memory
        tie: Any = model.tie_weights
        tie()
    return model


def _cast(example: Callable[..., Any], own: torch.dtype, chosen: torch.dtype) -> Callable[..., Any]:
    """Return a function whose inputs follow the weights from their own dtype to the chosen one."""

    @functools.wraps(example)
    def cast(*numbers: int) -> Any:
        return tree_map_only(torch.Tensor, lambda x: x.to(chosen) if x.dtype == own else x, example(*numbers))

    return cast


def _record(model: Any, batch: int, tokens: int | None) -> tuple[Trace, Any]:
    what = f"a batch of {batch}" if tokens is None else f"{batch} x {tokens} tokens"
    options: dict[str, Any] = {}
    if hasattr(model, "example"):
        inputs = _example(model, what, *((batch,) if tokens is None else (batch, tokens)))
    else:
        inputs = {"input_ids": torch.zeros(batch, tokens or 1, dtype=torch.int64, device="chip")}
        accepted = inspect.signature(model.forward).parameters
        wanted = {"use_cache": False, "logits_to_keep": 1}
        options = {name: value for name, value in wanted.items() if name in accepted}
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if not isinstance(inputs, (tuple, list, dict)):
        raise BringupError(f"example must return a tensor, a tuple or a dict, got {type(inputs).__name__}")
    torch.chip.synchronize()  # type: ignore[attr-defined]
    try:
        with record() as trace:
            result = model(**inputs, **options) if isinstance(inputs, dict) else model(*inputs, **options)
            torch.chip.synchronize()  # type: ignore[attr-defined]
            step()
    except BringupError:
        raise
    except Exception as error:
        raise BringupError(
            f"{type(model).__name__} fails for {what}: {type(error).__name__}: {short(str(error), 200)}"
        ) from error
    if not trace.launches:
        raise BringupError(f"{type(model).__name__} launches nothing for {what}")
    return trace, result


def _example(model: Any, what: str, *numbers: int) -> Any:
    try:
        with torch.device("chip"):
            return model.example(*numbers)
    except BringupError:
        raise
    except Exception as error:
        raise BringupError(
            f"{type(model).__name__}.example fails for {what}: {type(error).__name__}: {short(str(error), 200)}"
        ) from error


def _record_sampler(logits: Any) -> Trace:
    """Record the choice of a token by its probability, as vllm/v1/sample: float32, temperature, exponential noise."""
    logits = logits[:, -1] if logits.dim() > 2 else logits
    torch.chip.synchronize()  # type: ignore[attr-defined]
    with record() as trace:
        probabilities = torch.softmax(logits.float().div_(1.0), dim=-1)
        probabilities.div_(torch.empty_like(probabilities).exponential_()).argmax(dim=-1)
        torch.chip.synchronize()  # type: ignore[attr-defined]
        step()
    return trace


def _is_family(trace: Trace, *names: str) -> Array:
    wanted = [FAMILIES.index(name) for name in names if name in FAMILIES]
    return np.isin(trace.work.family, wanted)


# ---- prices


class ForwardSteps:
    """A step table from a recorded model, on one chip or on several that share each product."""

    def __init__(self, recorded: Recorded, chip: Chip, host: Host, chips: int = 1) -> None:
        self.recorded = recorded
        self._tokens = np.asarray(sorted(recorded.prompts), dtype=float)
        self._requests = np.asarray(sorted(recorded.decodes), dtype=float)
        parts = [_dense(recorded.prompts[int(tokens)], chip, host, chips) for tokens in self._tokens]
        self._dense = np.asarray([seconds for seconds, _ in parts])
        self.host_seconds = parts[0][1]
        decodes = np.asarray([_dense(recorded.decodes[int(number)], chip, host, chips)[0] for number in self._requests])
        self._head = np.maximum(decodes - np.interp(self._requests, self._tokens, self._dense), 0.0)
        if recorded.samples:
            self._head += [_eager(recorded.samples[int(number)], chip, host) for number in self._requests]
        if chips > 1:
            self._dense += _all_reduces(recorded, self._tokens, chip, chips)
        self._by_tokens, self._by_samples = _Column(self._tokens, self._dense), _Column(self._requests, self._head)
        self._attention = [
            _Attention(signature, layers, chip, chips, self._tokens, self._requests)
            for signature, layers in recorded.attention
        ]

    def seconds(self, chunks: Sequence[Chunk], requests: int, context: int, width: int = 1) -> float:
        """Return the seconds of one step."""
        tokens = sum(chunk.tokens for chunk in chunks) + requests * width
        sampled = sum(chunk.last for chunk in chunks) + requests * width
        total = self._tokenwise(tokens, sampled)
        for attention in self._attention:
            total += sum(attention.of_chunk(chunk) for chunk in chunks)
            if requests:
                total += float(attention.of_decoding(requests, np.asarray([context + requests * width]))[0])
        return total

    def decode_seconds(self, requests: int, contexts: Array) -> Array:
        """Return the seconds of steps that only decode."""
        seconds = np.full(len(contexts), self._tokenwise(requests, requests))
        for attention in self._attention:
            seconds += attention.of_decoding(requests, contexts + requests)
        return seconds

    def _tokenwise(self, tokens: int, sampled: int) -> float:
        return self.host_seconds + self._by_tokens.at(tokens) + self._by_samples.at(sampled)


class _Column:
    """Values at whole numbers, interpolated between some of them and extended beyond the last."""

    def __init__(self, places: Array, values: Array) -> None:
        self._places, self._values = places, values
        self._table = np.interp(np.arange(int(places[-1]) + 1), places, values)
        self._table[0] = 0.0  # of nothing

    def at(self, number: int) -> float:
        """Return the value at a number."""
        if number < len(self._table):
            return float(self._table[number])
        return float(extended(self._places, self._values, np.asarray([number]))[0])


class _Attention:
    """The seconds of one kind of attention in all its layers."""

    def __init__(
        self, signature: Signature, layers: int, chip: Chip, chips: int, tokens: Array, requests: Array
    ) -> None:
        query, key = signature.required("query"), signature.required("key")
        heads, pairs = -(-query.shape[1] // chips), -(-key.shape[1] // chips)  # of the chip that has the most
        contexts = np.asarray(CONTEXTS, dtype=float)

        def priced(shapes: list[tuple[int, int, int, bool]]) -> Array:
            resized = [
                _attention(signature, batch, heads, pairs, rows, keys, causal) for batch, rows, keys, causal in shapes
            ]
            prices = pricing.price_table(pricing.WorkTable.from_signatures(resized), resized, chip, graph=True)
            return prices.seconds * layers

        self._contexts = contexts
        self._causal = _Column(tokens, priced([(1, int(rows), int(rows), True) for rows in tokens]))
        chunks = [(1, int(rows), int(cached), False) for cached in contexts for rows in tokens]
        self._cached = [_Column(tokens, row) for row in priced(chunks).reshape(len(contexts), len(tokens))]
        decodes = [(int(number), 1, int(cached), False) for cached in contexts for number in requests]
        self._decode = [_Column(requests, row) for row in priced(decodes).reshape(len(contexts), len(requests))]

    def of_chunk(self, chunk: Chunk) -> float:
        """Return the seconds of a part of a prompt: its tokens among themselves, and with those before them."""
        seconds = self._causal.at(chunk.tokens)
        if chunk.cached:
            column = np.asarray([row.at(chunk.tokens) for row in self._cached])
            seconds += float(extended(self._contexts, column, np.asarray([chunk.cached]))[0])
        return seconds

    def of_decoding(self, requests: int, contexts: Array) -> Array:
        """Return the seconds of one token of each request, by the tokens in all their caches."""
        column = np.asarray([row.at(requests) for row in self._decode])
        return extended(self._contexts, column, contexts / requests)


def _attention(
    signature: Signature, batch: int, heads: int, pairs: int, rows: int, keys: int, causal: bool
) -> Signature:
    """Return an attention with other sizes and without a mask."""
    tensors = {}
    for name, count, length in (("query", heads, rows), ("key", pairs, keys), ("value", pairs, keys)):
        tensors[name] = _shaped(signature.required(name), (batch, count, length, signature.required(name).shape[-1]))
    output = _shaped(signature.required("query"), (batch, heads, rows, signature.required("value").shape[-1]))
    args = {name: value for name, value in signature.args.items() if name not in ("attn_mask", "attn_bias")}
    return replace(
        signature,
        inputs=tuple(tensors.values()),
        outputs=(replace(output, storage=-1),),
        args={**args, **tensors, "is_causal": causal},
    )


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    strides = [1]
    for length in reversed(shape[1:]):
        strides.insert(0, strides[0] * length)
    return replace(tensor, shape=shape, strides=tuple(strides))


def _dense(trace: Trace, chip: Chip, host: Host, chips: int) -> tuple[float, float]:
    """Return the seconds of a recorded step without its attention, and what the host adds to a graph of it.

    See Note [The forward pass of an engine].
    """
    timeline = replay(trace, chip, host, what_if=WhatIf(keep_plans=False))
    columns = trace.columns
    rows = np.flatnonzero(columns["kind"] == LAUNCH)
    signature = columns["signature"][rows]
    attention = _is_family(trace, "attention")[signature]
    light = _is_family(trace, *LIGHT)[signature] & (timeline.fallback[rows] < 0)
    product = _is_family(trace, "matmul")[signature] & (timeline.fallback[rows] < 0)
    level, source = _levels(trace, rows, light)
    saved = pricing.launch_seconds(chip) - pricing.launch_seconds(chip, graph=True)
    kernels = np.asarray(timeline.work.kernels)[signature]
    alone = np.maximum(timeline.seconds[rows] - np.where(timeline.fallback[rows] < 0, saved * kernels, 0.0), 0.0)
    alone += timeline.fallback_parts[timeline.fallback[rows]].sum(axis=1) * (timeline.fallback[rows] >= 0)
    total = float(alone[~(attention | light | product)].sum())
    order = np.flatnonzero(light)[np.argsort(level[light], kind="stable")]
    if len(order):
        fused = as_one_kernel(timeline, rows[order], np.unique(level[order], return_inverse=True)[1])
        total += float(np.maximum(fused - saved, 0.0).sum())
    total += _products(trace, signature[product], level[product], source[product], chip, chips)
    graph = replay(trace, chip, host, what_if=WhatIf(graph=True, keep_plans=False))
    on_chip = float(graph.seconds[rows][timeline.fallback[rows] < 0].sum())
    return total, max(graph.total_seconds - on_chip, 0.0) if not (timeline.fallback[rows] >= 0).any() else 0.0


def _levels(trace: Trace, rows: Array, light: Array) -> tuple[Array, Array]:
    """Return for each launch how many products its inputs have passed, and the storage of its first input."""
    passed: dict[int, int] = {}
    levels, sources = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
    for place, row in enumerate(rows.tolist()):
        uses = trace.uses[trace.offsets[row] : trace.offsets[row + 1]].tolist()
        read = [number >> 1 for number in uses if not number & 1]
        levels[place] = max((passed.get(storage, 0) for storage in read), default=0)
        activations = [storage for storage in read if storage in passed]
        sources[place] = activations[0] if activations else -1 - place
        for number in uses:
            if number & 1:
                passed[number >> 1] = int(levels[place]) + (0 if light[place] else 1)
    return levels, sources


def _products(trace: Trace, signature: Array, level: Array, source: Array, chip: Chip, chips: int) -> float:
    """Return the seconds of products, of which those with the same input are one."""
    groups: dict[tuple[Any, ...], list[Signature]] = {}
    for place, number in enumerate(signature.tolist()):
        kind = trace.signatures[number]
        mergeable = kind.base in ("mm", "addmm")
        weight = kind.tensor("mat2") if mergeable else None
        if weight is None:
            groups[place,] = [kind]
        else:
            key = (int(level[place]), int(source[place]), kind.op, weight.shape[0], weight.dtype)
            groups.setdefault(key, []).append(kind)
    merged = [_merged(kinds, chips) for kinds in groups.values()]
    if not merged:
        return 0.0
    return float(pricing.price_table(pricing.WorkTable.from_signatures(merged), merged, chip, graph=True).seconds.sum())


def _merged(kinds: list[Signature], chips: int) -> Signature:
    """Return one product with the columns of several, divided among chips."""
    first = kinds[0]
    if first.base not in ("mm", "addmm") or first.tensor("mat2") is None:
        return first
    weights = [kind.required("mat2") for kind in kinds]
    columns = -(-sum(weight.shape[1] for weight in weights) // chips)
    old = {id(first.required("mat2")): _shaped(weights[0], (weights[0].shape[0], columns))}
    if first.base == "addmm":
        old[id(first.required("self"))] = _shaped(first.required("self"), (columns,))
    outputs = tuple(item and _shaped(item, (*item.shape[:-1], columns)) for item in first.outputs)
    inputs = tuple(old.get(id(item), item) for item in first.inputs)
    args = {name: old.get(id(value), value) for name, value in first.args.items()}
    return replace(first, inputs=inputs, outputs=outputs, args=args)


def _eager(trace: Trace, chip: Chip, host: Host) -> float:
    """Return the seconds of launches as they are."""
    timeline: Timeline = replay(trace, chip, host)
    launched = trace.columns["kind"] == LAUNCH
    parts = timeline.fallback_parts[timeline.fallback[launched]].sum(axis=1) * (timeline.fallback[launched] >= 0)
    return float(timeline.seconds[launched].sum() + parts.sum())


def _all_reduces(recorded: Recorded, tokens: Array, chip: Chip, chips: int) -> Array:
    """Return the seconds of two all-reduces per layer, after attention and after its products (Megatron-LM, 2019)."""
    if not recorded.attention:
        raise BringupError(
            f"{recorded.name} calls no scaled_dot_product_attention, so its layers are unknown: leave "
            "--chips-per-engine out"
        )
    topology = cluster_of(chip, chips)
    width = max(query.shape[1] * query.shape[-1] * query.item_bytes for query in _queries(recorded))
    layers = sum(count for _, count in recorded.attention)
    seconds = [collective_seconds("all_reduce", number * width, cluster=topology, ranks=chips) for number in tokens]
    return 2 * layers * np.asarray(seconds)


def _queries(recorded: Recorded) -> list[Tensor]:
    return [signature.required("query") for signature, _ in recorded.attention]

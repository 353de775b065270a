"""ONNX's recurrent layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from bringup.frontends.onnx.operators import Call, Tensor, operator

Activation = Callable[[Tensor], Tensor]
Step = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    def value(attribute: float | None, default: float) -> float:
        return default if attribute is None else attribute

    functions: dict[str, Activation] = {
        "relu": torch.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "softsign": functional.softsign,
        "softplus": functional.softplus,
        "leakyrelu": lambda x: functional.leaky_relu(x, value(alpha, 0.01)),
        "thresholdedrelu": lambda x: functional.threshold(x, value(alpha, 1.0), 0.0),
        "scaledtanh": lambda x: value(alpha, 1.0) * torch.tanh(value(beta, 1.0) * x),
        "hardsigmoid": lambda x: torch.clamp(value(alpha, 0.2) * x + value(beta, 0.5), 0, 1),
        "elu": lambda x: functional.elu(x, value(alpha, 1.0)),
        "affine": lambda x: value(alpha, 1.0) * x + value(beta, 0.0),
    }
    return functions[name.lower()]


def _activations(call: Call, default: tuple[str, ...], direction: int) -> list[Activation]:
    """Return the activations of one direction."""
    names = call("activations") or list(default) * 2
    alphas, betas = (list(call(f"activation_{name}") or ()) for name in ("alpha", "beta"))
    count = len(default)
    chosen = names[direction * count : (direction + 1) * count]
    return [
        _activation(
            name,
            alphas[direction * count + place] if direction * count + place < len(alphas) else None,
            betas[direction * count + place] if direction * count + place < len(betas) else None,
        )
        for place, name in enumerate(chosen)
    ]


def _bound(call: Call) -> Activation:
    """Return what limits the inputs of activations."""
    limit = call("clip")
    return (lambda x: torch.clamp(x, -limit, limit)) if limit else (lambda x: x)


def _run(
    call: Call,
    x: Tensor,
    lengths: Tensor | None,
    states: list[Tensor | None],
    make_step: Callable[[int], Step],
) -> tuple[Tensor, ...]:
    """Run a layer step by step in each direction.

    Args:
        call: the node.
        x: the input, of shape (time, batch, features).
        lengths: the length of each sequence; None if all have the input's.
        states: the first states, of shape (directions, batch, hidden).
        make_step: returns the function of one step for a direction.

    Returns:
        The outputs (time, directions, batch, hidden), and the last states.
    """
    batch_first = call("layout", 0)
    if batch_first:
        x = x.transpose(0, 1)
        states = [None if state is None else state.transpose(0, 1) for state in states]
    time, batch = x.shape[:2]
    kind, hidden = call("direction", "forward"), call("hidden_size")
    whole, lasts = [], []
    for direction in range(2 if kind == "bidirectional" else 1):
        step = make_step(direction)
        zeros = torch.zeros((batch, hidden), dtype=x.dtype, device=x.device)
        now = tuple(zeros if state is None else state[direction] for state in states)
        backwards = kind == "reverse" or direction == 1
        outputs: list[Tensor] = []
        for place in reversed(range(time)) if backwards else range(time):
            after = step(x[place], now)
            if lengths is None:
                outputs.append(after[0])
                now = after
                continue
            inside = (place < lengths).reshape(-1, 1)
            outputs.append(torch.where(inside, after[0], torch.zeros_like(after[0])))
            now = tuple(torch.where(inside, new, old) for new, old in zip(after, now, strict=True))
        whole.append(torch.stack(outputs[::-1] if backwards else outputs))
        lasts.append(now)
    result = torch.stack(whole, 1)
    last = [torch.stack(parts) for parts in zip(*lasts, strict=True)]
    if batch_first:
        return result.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last)
    return result, *last


def _biases(bias: Tensor | None, direction: int, count: int) -> list[Tensor | float]:
    return [0.0] * count if bias is None else list(bias[direction].chunk(count))


def _reordered(parts: list[int], *items: Tensor) -> list[Tensor]:
    """Return weights with their gates in another order."""
    return [torch.cat([item.chunk(len(parts))[part] for part in parts]) for item in items]


def _library(
    call: Call, kernel: Any, order: list[int], tensors: list[Tensor | None], states: list[Tensor | None]
) -> tuple[Tensor, ...] | None:
    """Run a layer with torch's own kernel, as an accelerator's library would; None if the node is unlike torch's."""
    x, weight, recurrence, bias, lengths = tensors
    assert x is not None and weight is not None and recurrence is not None
    direction, hidden = call("direction", "forward"), call("hidden_size")
    unlike = call("clip") or call("layout", 0) or call("activations") or call("input_forget", 0)
    if unlike or lengths is not None or direction == "reverse" or not x.numel():
        return None
    directions = weight.shape[0]
    shape = directions, x.shape[1], hidden
    first = [torch.zeros(shape, dtype=x.dtype, device=x.device) if state is None else state for state in states]

    def arrange() -> list[Tensor]:
        arranged: list[Tensor] = []
        for number in range(directions):
            biases = () if bias is None else bias[number].chunk(2)
            arranged += _reordered(order, weight[number], recurrence[number], *biases)
        return arranged

    weights = call.once("weights", arrange, weight, recurrence, bias)
    starts = first if len(first) > 1 else first[0]
    output, *last = kernel(x, starts, weights, bias is not None, 1, 0.0, False, directions == 2, False)
    return output.reshape(*x.shape[:2], directions, hidden).transpose(1, 2), *last


@operator("RNN")
def rnn(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    if fast := _library(call, torch.rnn_tanh, [0], [x, weight, recurrence, bias, lengths], [hidden]):
        return fast
    bound = _bound(call)

    def make_step(direction: int) -> Step:
        (act,) = _activations(call, ("Tanh",), direction)
        of_input, of_state = _biases(bias, direction, 2)
        w_t, r_t = weight[direction].t(), recurrence[direction].t()
        return lambda row, now: (act(bound(row @ w_t + now[0] @ r_t + of_input + of_state)),)

    return _run(call, x, lengths, [hidden], make_step)


@operator("GRU")
def gru(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, ...]:
    after = call("linear_before_reset", 0)  # as torch's layer does
    if after and (fast := _library(call, torch.gru, [1, 0, 2], [x, weight, recurrence, bias, lengths], [hidden])):
        return fast
    bound = _bound(call)

    def make_step(direction: int) -> Step:
        f, g = _activations(call, ("Sigmoid", "Tanh"), direction)
        w_z, w_r, w_h = (part.t() for part in weight[direction].chunk(3))
        r_z, r_r, r_h = (part.t() for part in recurrence[direction].chunk(3))
        b_z, b_r, b_h, c_z, c_r, c_h = _biases(bias, direction, 6)

        def step(row: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (state,) = now
            update = f(bound(row @ w_z + state @ r_z + b_z + c_z))
            reset = f(bound(row @ w_r + state @ r_r + b_r + c_r))
            inner = reset * (state @ r_h + c_h) if after else (reset * state) @ r_h + c_h
            new = g(bound(row @ w_h + inner + b_h))
            return ((1 - update) * new + update * state,)

        return step

    return _run(call, x, lengths, [hidden], make_step)


@operator("LSTM")
def lstm(
    call: Call,
    x: Tensor,
    weight: Tensor,
    recurrence: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    hidden: Tensor | None = None,
    cell: Tensor | None = None,
    peephole: Tensor | None = None,
) -> tuple[Tensor, ...]:
    tensors = [x, weight, recurrence, bias, lengths]
    if peephole is None and (fast := _library(call, torch.lstm, [0, 2, 3, 1], tensors, [hidden, cell])):
        return fast
    bound, coupled = _bound(call), call("input_forget", 0)

    def make_step(direction: int) -> Step:
        f, g, h = _activations(call, ("Sigmoid", "Tanh", "Tanh"), direction)
        w_t, r_t = weight[direction].t(), recurrence[direction].t()
        of_input, of_state = (0.0, 0.0) if bias is None else bias[direction].chunk(2)
        p_i, p_o, p_f = (0.0, 0.0, 0.0) if peephole is None else peephole[direction].chunk(3)

        def step(row: Tensor, now: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            state, memory = now
            gates = row @ w_t + state @ r_t + of_input + of_state
            enter, leave, forget, new = gates.chunk(4, -1)
            enter = f(bound(enter + p_i * memory))
            forget = 1 - enter if coupled else f(bound(forget + p_f * memory))
            memory = forget * memory + enter * g(bound(new))
            leave = f(bound(leave + p_o * memory))
            return leave * h(memory), memory

        return step

    return _run(call, x, lengths, [hidden, cell], make_step)

"""Models by name: transformers configurations without a network, and timm's models; their inputs and one step."""

from __future__ import annotations

import difflib
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from bringup.errors import BringupError
from bringup.text import short

DTYPES = {
    "fp32": (torch.float32, None),
    "bf16": (torch.bfloat16, None),
    "fp16": (torch.float16, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "fp16-mixed": (torch.float32, torch.float16),
}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "adafactor": torch.optim.Adafactor,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# Dimensions from the papers, for names whose configuration is not on this machine: GPT-2 (Radford et al., 2019,
# table 2), BERT (arXiv:1810.04805, section 3), Llama 2 (arXiv:2307.09288, table 1; sizes of layers as in Llama,
# arXiv:2302.13971, table 2), Llama 3 (arXiv:2407.21783, table 3), Mistral 7B (arXiv:2310.06825, table 1).
_LLAMA_3 = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 8192}
PUBLISHED: dict[str, tuple[str, dict[str, int]]] = {
    "gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt2-large": ("gpt2", {"n_embd": 1280, "n_layer": 36, "n_head": 20}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "bert-base": ("bert", {}),
    "bert-large": (
        "bert",
        {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096},
    ),
    "llama-2-7b": ("llama", {"max_position_embeddings": 4096}),
    "llama-2-13b": (
        "llama",
        {
            **{"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
            "max_position_embeddings": 4096,
        },
    ),
    "llama-2-70b": (
        "llama",
        {
            **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
            **{"num_key_value_heads": 8, "max_position_embeddings": 4096},
        },
    ),
    "llama-3-8b": ("llama", {"intermediate_size": 14336, **_LLAMA_3}),
    "llama-3-70b": (
        "llama",
        {
            **{"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
            **_LLAMA_3,
        },
    ),
    "mistral-7b": ("mistral", {}),
}
ENDINGS = ("-hf", "-instruct", "-chat", "-uncased", "-cased", "-v0.1")


@dataclass(frozen=True)
class Work:
    """What to do with a model.

    Attributes:
        train: run forward, backward and the optimizer; else only forward, keeping a cache if the model has one.
        optimizer: key of `OPTIMIZERS`.
        dtype: key of `DTYPES`; ``-mixed``: float32 weights under autocast.
        lora: rank of low-rank adapters, which are then all that is trained; 0 for none.
        checkpointing: rebuild activations in the backward pass.
    """

    train: bool = False
    optimizer: str = "adamw"
    dtype: str = "bf16"
    lora: int = 0
    checkpointing: bool = False


@dataclass(frozen=True)
class Model:
    """A model that can be built.

    Attributes:
        title: the name of its class.
        build: returns it on the chip, without values.
        inputs: returns the arguments of a step, by batch and tokens.
        most_tokens: the longest sequence; 0 if the model has no sequences of tokens.
    """

    title: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[int, int], dict[str, Any]]
    most_tokens: int


def find_model(name: str) -> Model:
    """Find a model by the path of a configuration of transformers or timm, a name of transformers, or a name of timm.

    Raises:
        BringupError: there is none, or its library is missing.
    """
    path = os.path.join(name, "config.json") if os.path.isdir(name) else name
    data = _read(path) if os.path.isfile(path) or path.endswith(".json") else None
    if data is not None and "model_type" not in data and "architecture" in data:
        return _of_timm(str(data["architecture"]), data, _library("timm", name), name)
    if data is not None or find_spec("transformers") is not None:
        config = _config(name, data, _library("transformers", name))
        if config is not None:
            return _of_transformers(config, name)
    missing = "; models of timm need timm, which is not installed: pip install timm"
    if find_spec("timm") is not None:
        timm = _library("timm", name)
        architecture = name.removeprefix("hf_hub:").removeprefix("hf-hub:").removeprefix("timm/")
        if timm.is_model(architecture):
            return _of_timm(architecture, {}, timm, name)
        nearest = difflib.get_close_matches(architecture[:80], timm.list_models(), n=2, cutoff=0.6)
        missing = ", nor is it a model of timm" + (f": did you mean {' or '.join(nearest)}?" if nearest else "")
    names = ", ".join(PUBLISHED)
    raise BringupError(
        f"--model {name}: not the path of a config.json, no model type of transformers, and not on this machine; "
        f"known are also {names}{missing}"
    )


def _library(library: str, name: str) -> Any:
    """Import a library that builds the named model.

    Raises:
        BringupError: it is not installed, or cannot be imported.
    """
    if find_spec(library) is None:
        raise BringupError(f"--model {name}: needs {library}, which is not installed: pip install {library}")
    try:
        return import_module(library)
    except Exception as error:  # a library that it needs is missing, or was built for another torch
        raise BringupError(
            f"--model {name}: needs {library}, which cannot be imported ({first_line(error)}): "
            f'python -c "import {library}" shows why'
        ) from None


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, or its type's name."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _config(name: str, data: dict[str, Any] | None, transformers: Any) -> Any:
    """Return a configuration of transformers, without the network; None if there is none with this name.

    The data is what the file of this name has, and None if it is the name of a model.
    """
    transformers.logging.set_verbosity_error()
    if data is not None:
        return _of_data(data, name, transformers)
    published = _published(name)
    if published is not None:
        kind, sizes = published
        return transformers.AutoConfig.for_model(kind, **sizes)
    if name in transformers.CONFIG_MAPPING:  # a kind of model, with the library's default sizes
        return transformers.AutoConfig.for_model(name)
    try:
        return transformers.AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):  # not in the cache of this machine, or no name of a repository
        return None


def _published(name: str) -> tuple[str, dict[str, int]] | None:
    """Return the kind and the sizes of a published model, named as in its repository or shorter."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-").replace("llama2", "llama-2")
    while any(short.endswith(ending) for ending in ENDINGS):
        short = next(short.removesuffix(ending) for ending in ENDINGS if short.endswith(ending))
    return PUBLISHED.get(short)


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise BringupError(f"--model {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise BringupError(f"--model {path}: is not JSON ({error})") from None
    if not isinstance(data, dict) or not {"model_type", "architecture"} & data.keys():
        raise BringupError(
            f"--model {path}: is no configuration of transformers or timm: model_type or architecture is missing"
        )
    return data


def _of_data(data: dict[str, Any], path: str, transformers: Any) -> Any:
    try:
        kind = data["model_type"]
        return transformers.AutoConfig.for_model(kind, **{key: data[key] for key in data if key != "model_type"})
    except Exception as error:  # transformers checks values with errors of many types
        first = first_line(error).partition(". Should contain one of ")[0]  # what follows are all of its names
        raise BringupError(f"--model {path}: transformers refuses the configuration: {first}") from None


def _of_transformers(config: Any, name: str) -> Model:
    import transformers

    automatic = _automatic(config, transformers)
    if automatic is None:
        raise BringupError(
            f"--model {name}: {type(config).__name__} has no class for language modelling or image classification"
        )
    kind = automatic._model_mapping[type(config)]
    kind = kind[0] if isinstance(kind, tuple) else kind
    if automatic is transformers.AutoModelForSpeechSeq2Seq:
        limit, inputs = config.max_target_positions, _sounds(config)
    elif config.is_encoder_decoder or automatic is not transformers.AutoModelForImageClassification:
        limit = getattr(config, "max_position_embeddings", 0) or getattr(config, "n_positions", 0) or 1 << 20
        inputs = _tokens(getattr(config, "vocab_size", 2), bool(config.is_encoder_decoder))
    else:
        side = getattr(config, "image_size", None) or 224
        side = side[0] if isinstance(side, (list, tuple)) else side
        limit, inputs = 0, _images("pixel_values", int(getattr(config, "num_channels", 3)), int(side))
    return Model(kind.__name__, lambda: automatic.from_config(config), inputs, int(limit))


def _automatic(config: Any, transformers: Any) -> Any:
    """Return the class of transformers that makes a model of this configuration with a head; None if there is none."""
    names = ["Seq2SeqLM", "ImageClassification", "MaskedLM", "CausalLM"]
    if hasattr(config, "num_mel_bins") and hasattr(config, "max_source_positions"):  # as Whisper has
        names.insert(0, "SpeechSeq2Seq")
    if any("CausalLM" in name or "LMHead" in name for name in getattr(config, "architectures", None) or []):
        names.insert(0, names.pop())
    for name in names:
        automatic = getattr(transformers, f"AutoModelFor{name}")
        if type(config) in automatic._model_mapping:
            return automatic
    return None


def _of_timm(architecture: str, data: dict[str, Any], timm: Any, name: str) -> Model:
    """Return a model of timm; the data is the config.json that timm wrote, and empty if the model is named."""
    if not timm.is_model(architecture):
        raise BringupError(f"--model {name}: timm {timm.__version__} has no architecture {architecture}")
    values, arguments = data.get("pretrained_cfg") or {}, data.get("model_args") or {}
    if not isinstance(values, dict) or not isinstance(arguments, dict):
        raise BringupError(f"--model {name}: pretrained_cfg and model_args must be objects")
    arguments = dict(arguments)
    if isinstance(data.get("num_classes"), int):
        arguments.setdefault("num_classes", data["num_classes"])
    sizes = values.get("input_size") or timm.get_pretrained_cfg(architecture).input_size
    if (
        not isinstance(sizes, (list, tuple))
        or len(sizes) != 3
        or any(type(item) is not int or item < 1 for item in sizes)
    ):
        raise BringupError(f"--model {name}: input_size must be three positive whole numbers, got {short(str(sizes))}")
    channels, side = sizes[:2]

    def build() -> torch.nn.Module:  # without weights, whatever the arguments are
        return timm.create_model(architecture, pretrained=False, checkpoint_path="", **arguments)  # type: ignore[no-any-return]

    return Model(architecture, build, _images("x", channels, side), 0)


def _tokens(vocabulary: int, has_decoder: bool) -> Callable[[int, int], dict[str, Any]]:
    def inputs(batch: int, tokens: int) -> dict[str, Any]:
        ids = torch.randint(0, vocabulary, (batch, tokens)).to("chip")
        return {"input_ids": ids, **({"decoder_input_ids": ids} if has_decoder else {})}

    return inputs


def _sounds(config: Any) -> Callable[[int, int], dict[str, Any]]:
    """Return the inputs of Whisper: a spectrogram of 30 seconds, whose length its encoder halves, and tokens."""
    words = _tokens(config.vocab_size, True)
    shape = config.num_mel_bins, 2 * config.max_source_positions

    def inputs(batch: int, tokens: int) -> dict[str, Any]:
        text = words(batch, tokens)["decoder_input_ids"]
        return {"input_features": torch.empty(batch, *shape).to("chip"), "decoder_input_ids": text}

    return inputs


def _images(argument: str, channels: int, side: int) -> Callable[[int, int], dict[str, Any]]:
    return lambda batch, _: {argument: torch.empty(batch, channels, side, side).to("chip")}


def prepared(model: Model, work: Work) -> torch.nn.Module:
    """Build a model on the chip, with adapters and checkpointing as the work says.

    Raises:
        BringupError: the model or its library cannot do this.
    """
    try:
        with torch.device("meta"):
            built: Any = model.build()
    except Exception as error:  # of the model's own code
        raise BringupError(f"{model.title} cannot be built: {first_line(error)}") from None
    weights, _ = DTYPES[work.dtype]
    module: Any = built.to(weights).to_empty(device="chip").train(work.train)
    if hasattr(module, "tie_weights"):  # `to_empty` gives every parameter its own memory
        module.tie_weights()
    if work.lora:
        module = _with_adapters(module, work.lora)
    if work.checkpointing and work.train:
        enable = getattr(module, "gradient_checkpointing_enable", None) or getattr(
            module, "set_grad_checkpointing", None
        )
        if enable is None or getattr(module, "supports_gradient_checkpointing", True) is False:
            raise BringupError(f"--checkpointing: {model.title} does not support it: leave it out")
        enable()
        if work.lora and hasattr(module, "enable_input_require_grads"):
            module.enable_input_require_grads()
    return module  # type: ignore[no-any-return]


def _with_adapters(module: torch.nn.Module, rank: int) -> Any:
    if find_spec("peft") is None:
        raise BringupError("--lora needs peft, which is not installed: pip install peft")
    from peft import LoraConfig, get_peft_model

    try:
        adapted: Any = get_peft_model(module, LoraConfig(r=rank))
    except ValueError:  # peft names no layers for this kind of model
        adapted = get_peft_model(module, LoraConfig(r=rank, target_modules="all-linear"))
    dtype = next(module.parameters()).dtype
    return adapted.to("chip", dtype)


def step(module: torch.nn.Module, work: Work, inputs: dict[str, Any], optimizer: torch.optim.Optimizer | None) -> Any:
    """Run one step: forward, and in training also backward and the optimizer. Return the forward pass's result."""
    weights, autocast = DTYPES[work.dtype]
    inputs = {name: item.to(weights) if item.is_floating_point() else item for name, item in inputs.items()}
    accepted = inspect.signature(module.forward if not work.lora else module.get_base_model().forward).parameters  # type: ignore[operator]
    if optimizer is None:
        options = {"use_cache": True, "logits_to_keep": 1}
        with torch.no_grad(), torch.autocast("chip", autocast, enabled=autocast is not None):
            return module(**inputs, **{name: value for name, value in options.items() if name in accepted})
    labels = {}
    if "labels" in accepted:
        data = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        first = next(iter(inputs.values()))
        labels["labels"] = data if data is not None else torch.zeros(len(first), dtype=torch.int64).to("chip")
    options = {"use_cache": False} if "use_cache" in accepted else {}
    with torch.autocast("chip", autocast, enabled=autocast is not None):
        result = module(**inputs, **labels, **options)
        loss = result.loss if labels else result.float().square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return None

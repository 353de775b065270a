"""Generate text with a Llama of random weights and a key-value cache; the tokenizer works on the host.

``bringup run --cuda --chip-time --dry --chip h100-sxm examples/generate.py --size 8b``: tokens per second of a
model that this machine could not hold. Needs transformers.
"""

import argparse
import time

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "num_attention_heads": 4},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}


def tokenizer() -> Tokenizer:
    """Train a byte-pair encoding on this file."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train([__file__], trainer)
    return made


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=500, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **SIZES[options.size])
    with torch.device("cuda"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    words = tokenizer()
    prompt = torch.tensor([words.encode("def main() -> None:").ids], device="cuda")
    sizes = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    for name in ("warm-up", "measured"):
        torch.cuda.synchronize()
        start = time.perf_counter()
        made = model.generate(prompt, do_sample=False, pad_token_id=0, **sizes)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        count = made.shape[1] - prompt.shape[1]
        print(f"{name}: {count} tokens, {count / seconds:.1f} tokens/s, {seconds / count * 1e3:.2f} ms per token")
    print(repr(words.decode(made[0].tolist())[:60]))


if __name__ == "__main__":
    main()

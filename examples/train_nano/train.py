"""Train r1v-nano from nothing: `python examples/train_nano/train.py`.

Two processes of one thread each share every step, which on a small CPU is faster than one process of two threads.
The result depends on the options only; an interrupted run resumes from its last save.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from batches import IGNORED, Batch, Batches
from model_files import write_model_files
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from r1v_export.checkpoint.config import read_configuration
from r1v_export.model_spec import LanguageSpec, ModelSpec
from r1v_export.reference.language import Attention, CacheStep, rotary_tables
from r1v_export.reference.model import Model

MODEL_FOLDER = Path(__file__).parents[2] / "r1v_export/nano/model"
PROCESSES = 2
IMAGES = 12
"""Images per process and step; a multiple of the number of question kinds."""
CYCLES = (2100, 3000, 3400)
"""Steps after which the learning rate has fallen to zero. Each cycle begins where its own line of decay is by then."""
STRESSED_STEPS = CYCLES[0]
"""From then on conclusions count twice: with every token of a reply, and among themselves. Looking things up, for which
they are long enough, is learned last."""
WARMUP_STEPS = 50
DECAY_SHARE = 0.67
"""The learning rate falls linearly to zero over this last share of a cycle's steps."""
SINGLE_TILE_STEPS = 300
"""The first steps show small images only."""
CROWDED_STEPS = 1100
"""Until then images may be crowded."""
MATRIX_LEARNING_RATE = 5e-3
OTHER_LEARNING_RATE = 2e-3
LOOKING_BACK_LAYERS, LOOKING_BACK_PAIRS, LOOKING_BACK_SIZE = 2, 6, 4.0
"""How `look_back` sets heads: layers, rotary frequencies and the size of the biases."""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="save and stop after so long")
    parser.add_argument("--run", type=Path, default=Path("out/train_nano"), help="folder of checkpoint and log")
    parser.add_argument("--output", type=Path, default=MODEL_FOLDER, help="folder of the trained model")
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    return parser.parse_args()


def initialize(model: Model) -> None:
    """Normal weights with a variance of 1 / (2 * inputs), zero biases; norms and LayerScale stay at one."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            inputs = module.weight[0].numel()
            nn.init.normal_(module.weight, std=(2 * inputs) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    nn.init.normal_(model.vision_model.embeddings.class_embedding, std=0.02)
    nn.init.normal_(model.vision_model.embeddings.position_embedding, std=0.02)
    for layer in model.language_model.model.layers[:LOOKING_BACK_LAYERS]:
        look_back(layer.self_attn, model.spec.language)


@torch.no_grad()
def look_back(attention: Attention, spec: LanguageSpec) -> None:
    """Set q and k biases so that the first key-value head's queries look one, two ... tokens back, whatever is said.

    Looking something up in the text takes such heads. Left to itself, training finds them late: with them, later
    questions of a conversation are foreseen with half the loss after 250 steps.
    """
    half = spec.head_dim // 2
    frequencies = spec.rope_theta ** -(torch.arange(LOOKING_BACK_PAIRS) / half)
    attention.k_proj.bias[:LOOKING_BACK_PAIRS] = LOOKING_BACK_SIZE
    for head in range(spec.num_heads // spec.num_kv_heads):
        # Rotary positions turn a query's pair by its position; turned back by this angle, it matches the key's there.
        angles = -(head + 1) * frequencies
        bias = attention.q_proj.bias[head * spec.head_dim : (head + 1) * spec.head_dim]
        bias[:LOOKING_BACK_PAIRS] = LOOKING_BACK_SIZE * angles.cos()
        bias[half : half + LOOKING_BACK_PAIRS] = LOOKING_BACK_SIZE * angles.sin()


def optimizers_of(model: Model) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for embeddings, the head, norms and biases."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        inside = parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
        (matrices if inside else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_factor(step: int) -> float:
    end = next(end for end in CYCLES if step < end)
    return min(1.0, (step + 1) / WARMUP_STEPS, (end - step) / (DECAY_SHARE * end))


def loss_and_exact_rows(model: Model, batch: Batch, stressed: bool) -> tuple[Tensor, float]:
    """Mean cross-entropy of the replies' tokens, and the share of conversations in which each of them is foreseen.

    Args:
        stressed: add the mean over the conclusions.
    """
    image_embeds_TNE = model.image_embeds(batch.pixels)
    inputs_embeds_BSE = model.embed(batch.ids, image_embeds_TNE.flatten(0, 1))
    seq = batch.ids.shape[1]
    positions_BS = torch.arange(seq).expand_as(batch.ids)
    whole_sequence = CacheStep(positions_BS, write_index=positions_BS[:, 0], length=positions_BS[:, -1] + 1)
    rotary = rotary_tables(model.spec.language, seq)
    logits_BSV, _ = model.language_model(inputs_embeds_BSE, rotary, whole_sequence, cache=None)
    logits_NV = logits_BSV.flatten(0, 1).float()
    loss = F.cross_entropy(logits_NV, batch.labels.flatten(), ignore_index=IGNORED)
    if stressed:
        loss = loss + F.cross_entropy(logits_NV, batch.conclusions.flatten(), ignore_index=IGNORED)
    right_BS = (logits_BSV.argmax(-1) == batch.labels) | (batch.labels == IGNORED)
    return loss, right_BS.all(dim=1).float().mean().item()


def average_gradients(model: Model) -> None:
    """Sum over the processes, divided by their number."""
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / PROCESSES).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def train(rank: int, arguments: argparse.Namespace, spec: ModelSpec) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{arguments.run.absolute()}/meeting", rank=rank, world_size=PROCESSES
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Model(spec)
    initialize(model)
    optimizers = optimizers_of(model)
    peak_rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = arguments.run / "checkpoint.pt"
    first_step = load(checkpoint, model, optimizers) if checkpoint.exists() else 0
    report = reporter(arguments.run / "log.txt") if rank == 0 else lambda *_: None
    deadline = time.monotonic() + 60 * arguments.minutes

    batches = Batches(
        arguments.output,
        spec,
        IMAGES,
        count=CYCLES[-1] * PROCESSES,
        single_tile_batches=SINGLE_TILE_STEPS * PROCESSES,
        crowded_batches=CROWDED_STEPS * PROCESSES,
    )
    mine = Subset(batches, range(first_step * PROCESSES + rank, len(batches), PROCESSES))
    for step, batch in enumerate(DataLoader(mine, batch_size=None, num_workers=1), start=first_step):
        for optimizer, peak in zip(optimizers, peak_rates, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate_factor(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss, exact = loss_and_exact_rows(model, Batch(*batch), stressed=step >= STRESSED_STEPS)
        loss.backward()
        average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        report(step + 1, loss.item(), exact)
        stop = torch.tensor(time.monotonic() > deadline, dtype=torch.int32)
        dist.all_reduce(stop)
        if rank == 0 and ((step + 1) % arguments.save_every == 0 or step + 1 == CYCLES[-1] or stop):
            save(checkpoint, model, optimizers, step + 1)
            save_weights(model, arguments.output / "model.safetensors")
        if stop:
            break
    dist.destroy_process_group()


def save(path: Path, model: Model, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    """Everything a run needs to go on, renamed into place when whole."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)


def load(path: Path, model: Model, optimizers: list[torch.optim.Optimizer]) -> int:
    """Take up a saved run; returns the number of steps it has done."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


def save_weights(model: Model, path: Path) -> None:
    """The weights as they ship: rounded to bf16."""
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, path.with_suffix(".new"), metadata={"format": "pt"})
    path.with_suffix(".new").rename(path)


def reporter(log: Path) -> Callable[[int, float, float], None]:
    """Prints and logs the mean loss and share of exact of every 25 steps."""
    recent: list[tuple[float, float]] = []
    start = time.monotonic()

    def report(step: int, loss: float, exact: float) -> None:
        recent.append((loss, exact))
        if step % 25:
            return
        mean_loss, mean_exact = (sum(values) / len(recent) for values in zip(*recent, strict=True))
        minutes = (time.monotonic() - start) / 60
        line = f"step {step:5}  loss {mean_loss:.4f}  exact {mean_exact:6.1%}  {minutes:5.1f} min"
        print(line, flush=True)
        with log.open("a") as file:
            file.write(line + "\n")
        recent.clear()

    return report


def main() -> None:
    arguments = parse_arguments()
    arguments.run.mkdir(parents=True, exist_ok=True)
    (arguments.run / "meeting").unlink(missing_ok=True)
    if not (arguments.run / "checkpoint.pt").exists():
        write_model_files(arguments.output)
    spec = read_configuration(arguments.output, stores_lm_head=True, stored_dtype="bfloat16").spec
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(train, (arguments, spec), nprocs=PROCESSES)


if __name__ == "__main__":
    main()

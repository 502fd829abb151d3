"""Train a small network on scikit-learn's handwritten digits: one process, or as many as a launcher starts.

The script asks its environment who it is (RANK, WORLD_SIZE, ...) and knows nothing of what started it:
`python train.py`, `torchrun train.py` and `srun hpc-launch train.py` all train the same network.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SEED = 0
TEST_SAMPLES = 360  # of 1797


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="over all ranks together (default: 64)")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/digits.pt"), metavar="PATH")
    parser.add_argument("--fresh", action="store_true", help="start over, even if there is a checkpoint")
    parser.add_argument("--min-accuracy", type=float, default=0.95, help="exit with 1 below it (default: 0.95)")
    return parser.parse_args()


def choose_device() -> torch.device:
    """Return this rank's GPU, if there are any.

    Modulo, because Slurm may show each task its own GPU only: then every local rank finds it as cuda:0.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def datasets(device: torch.device) -> tuple[TensorDataset, TensorDataset]:
    """Split the digits the same way on every rank. They are small enough to live on the device."""
    digits = load_digits()
    images = torch.tensor(digits.data / 16, dtype=torch.float32, device=device)
    labels = torch.tensor(digits.target, device=device)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SEED)).to(device)
    test, train = order[:TEST_SAMPLES], order[TEST_SAMPLES:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def save(checkpoint: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a job killed half-way leaves the one before, never half a file."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    unfinished = checkpoint.with_name(checkpoint.name + ".tmp")
    torch.save(state, unfinished)
    unfinished.replace(checkpoint)


def load(checkpoint: Path, rank: int, world_size: int) -> Any:
    """Read the checkpoint on rank 0 and send it to all.

    One reader is kind to a shared file system, and all ranks agree on the epoch even where it is not shared.
    """
    found: list[Any] = [None]
    if rank == 0 and checkpoint.exists():
        found = [torch.load(checkpoint, map_location="cpu", weights_only=True)]
    if world_size > 1:
        dist.broadcast_object_list(found)
    return found[0]  # None: there is no checkpoint


def accuracy(model: nn.Module, test: TensorDataset, rank: int, world_size: int) -> float:
    """Return the share of right answers; every rank looks at its part of the test set, and all learn the sum."""
    images, labels = test[rank::world_size]
    model.eval()
    with torch.no_grad():
        right = (model(images).argmax(dim=1) == labels).sum()
    if world_size > 1:
        dist.all_reduce(right)
    return float(right) / len(test)


def train(args: argparse.Namespace, device: torch.device, rank: int, world_size: int) -> float:
    torch.manual_seed(SEED)
    train_set, test_set = datasets(device)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    loss = nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(network.parameters(), lr=args.lr, momentum=0.9)

    epoch = step = 0
    state = None if args.fresh else load(args.checkpoint, rank, world_size)
    if state is not None:
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        epoch, step = state["epoch"], state["step"]
        if rank == 0:
            print(f"digits: going on after epoch {epoch} of {args.checkpoint}", flush=True)

    # The checkpoint holds the network itself, not DDP's wrapping, so that any number of ranks can read it.
    model = DistributedDataParallel(network) if world_size > 1 else network
    sampler: DistributedSampler[Any] = DistributedSampler(train_set, world_size, rank, seed=SEED, drop_last=True)
    # The ranks share the batch: more of them train the same network, to the same accuracy, faster.
    batches = DataLoader(train_set, batch_size=max(1, args.batch_size // world_size), sampler=sampler, drop_last=True)

    while epoch < args.epochs:
        sampler.set_epoch(epoch)  # shuffles anew, and in the same way when this epoch is run again
        model.train()
        for images, labels in batches:
            optimiser.zero_grad()
            loss(model(images), labels).backward()
            optimiser.step()
            step += 1
        epoch += 1
        if rank == 0:
            progress = {"epoch": epoch, "step": step}
            save(args.checkpoint, {"model": network.state_dict(), "optimiser": optimiser.state_dict(), **progress})
        if epoch % 5 == 0:
            score = accuracy(network, test_set, rank, world_size)
            if rank == 0:
                print(f"digits: epoch {epoch} step {step} accuracy {score:.3f}", flush=True)

    score = accuracy(network, test_set, rank, world_size)
    if rank == 0:
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        print(f"digits: accuracy {score:.3f} after {epoch} epochs on {ranks}", flush=True)
    return score


def main() -> int:
    args = arguments()
    device = choose_device()
    rank, world_size = 0, 1
    distributed = "WORLD_SIZE" in os.environ
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, world_size = dist.get_rank(), dist.get_world_size()
    score = train(args, device, rank, world_size)
    if distributed:
        dist.destroy_process_group()
    return 0 if score >= args.min_accuracy else 1


if __name__ == "__main__":
    sys.exit(main())

"""Train a small network on scikit-learn's handwritten digits: one process, or as many as a launcher starts.

The script asks its environment who it is (RANK, WORLD_SIZE, ...) and knows nothing of what started it:
`python train.py`, `torchrun train.py` and `srun hpc-launch train.py` all train the same network. Told to leave by a
signal, it saves and leaves; started again, it goes on at the next step, to the same result.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from hpc_launch import runtime

# What makes it another training: each combination has a checkpoint of its own.
PARAMETERS = ("batch_size", "lr", "seed")
SPLIT_SEED = 0
TEST_SAMPLES = 360  # of 1797


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64, help="over all ranks together (default: 64)")
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and the order (default: 0)")
    parser.add_argument("--checkpoint", type=Path, metavar="PATH", help="default: by batch size, lr and seed")
    parser.add_argument("--fresh", action="store_true", help="start over, even if there is a checkpoint")
    parser.add_argument("--min-accuracy", type=float, default=0.95, help="exit with 1 below it (default: 0.95)")
    parser.add_argument("--step-seconds", type=float, default=0.0, help="pretend that a step takes longer (default: 0)")
    args = parser.parse_args()
    others = {name: getattr(args, name) for name in PARAMETERS if getattr(args, name) != parser.get_default(name)}
    args.checkpoint = args.checkpoint or own_checkpoint(others)
    return args


def own_checkpoint(parameters: dict[str, Any]) -> Path:
    """Return where a point of a sweep has its checkpoint, by the parameters that are not the default.

    Two points never overwrite each other's, and never go on from each other's. A point that is run again finds its own,
    by whichever job: the number of an array's task would mean another point in the next sweep.
    """
    point = ",".join(f"{name}={value}" for name, value in parameters.items())
    return Path("checkpoints") / point / "digits.pt"


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
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED)).to(device)
    test, train = order[:TEST_SAMPLES], order[TEST_SAMPLES:]
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def shuffled(count: int, epoch: int, seed: int = 0) -> list[int]:
    """Return the samples in the order of an epoch: the same on every rank, and when the epoch is run again."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(1_000_000 * seed + epoch)).tolist()


def share(order: list[int], seen: int, rank: int, world_size: int) -> list[int]:
    """Return what a rank is to see of what is left of an epoch: the ranks take turns, and get equally many.

    What was seen is the first part of the order, however many ranks there were: so each sample is seen once in an
    epoch, also where the number of ranks changes in the middle of it.
    """
    left = order[seen:]
    return left[rank : len(left) - len(left) % world_size : world_size]


def say(rank: int, text: str) -> None:
    """Print a line for all ranks."""
    if rank == 0:
        print(f"digits: {text}", flush=True)


def save(checkpoint: Path, state: dict[str, Any]) -> None:
    """Replace the checkpoint in one step: a job killed half-way leaves the one before, never half a file."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    unfinished = checkpoint.with_name(checkpoint.name + ".tmp")
    torch.save(state, unfinished)
    unfinished.replace(checkpoint)


def load(checkpoint: Path, rank: int, world_size: int) -> Any:
    """Read the checkpoint on rank 0 and send it to all.

    One reader is kind to a shared file system, and all ranks agree on the step even where it is not shared.
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


def wrap(network: nn.Module, device: torch.device) -> nn.Module:
    """Let all ranks train the network together.

    DDP regroups the gradients after its first backward pass, and sums over many ranks are rounded otherwise from then
    on. That pass is made here, for nothing: so a run that goes on computes each step to the last bit as it would have
    been computed without the interruption.
    """
    model = DistributedDataParallel(network)
    model(torch.zeros(1, 64, device=device)).sum().backward()
    model.zero_grad()
    return model


def train_on(
    batches: DataLoader[Any], model: nn.Module, optimiser: torch.optim.Optimizer, step_seconds: float
) -> tuple[int, bool]:
    """Return the number of steps done, and whether to leave: then there may be batches left."""
    loss = nn.CrossEntropyLoss()
    model.train()
    leave = False
    for number, (images, labels) in enumerate(batches, start=1):
        optimiser.zero_grad()
        loss(model(images), labels).backward()
        optimiser.step()
        time.sleep(step_seconds)
        leave = runtime.should_stop(all_ranks=True)  # the same on all ranks, so that all leave after the same step
        if leave:
            return number, leave
    return len(batches), leave


def train(args: argparse.Namespace, device: torch.device, rank: int, world_size: int) -> float | None:
    """Return the accuracy; None if it was told to leave before it was done."""
    torch.manual_seed(args.seed)
    train_set, test_set = datasets(device)
    network = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
    # The ranks share the batch: more of them train the same network, to the same accuracy, faster.
    batch_size = max(1, args.batch_size // world_size)
    optimiser = torch.optim.SGD(network.parameters(), lr=args.lr, momentum=0.9)

    epoch = step = seen = 0  # seen: how many samples of this epoch, by all ranks together
    state = None if args.fresh else load(args.checkpoint, rank, world_size)
    if state is not None:
        network.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])  # with the learning rate of the ranks that there were then
        epoch, step, seen = state["epoch"], state["step"], state["seen"]
        say(rank, f"going on after step {step} (epoch {epoch}) of {args.checkpoint}")

    # A number of ranks that does not divide the batch makes it smaller, and the steps with it.
    for group in optimiser.param_groups:
        group["lr"] = args.lr * batch_size * world_size / args.batch_size

    # The checkpoint holds the network itself, not DDP's wrapping, so that any number of ranks can read it.
    model = wrap(network, device) if world_size > 1 else network
    steps_of_an_epoch = len(train_set) // world_size // batch_size

    while epoch < args.epochs:
        unseen = share(shuffled(len(train_set), epoch, args.seed), seen, rank, world_size)
        batches = DataLoader(train_set, batch_size, sampler=unseen, drop_last=True)
        steps, leave = train_on(batches, model, optimiser, args.step_seconds)
        step, seen = step + steps, seen + steps * batch_size * world_size
        left = len(batches) - steps + (args.epochs - epoch - 1) * steps_of_an_epoch
        if steps == len(batches):
            epoch, seen = epoch + 1, 0
        if rank == 0:
            place = {"epoch": epoch, "step": step, "seen": seen}
            save(args.checkpoint, {"model": network.state_dict(), "optimiser": optimiser.state_dict(), **place})
            runtime.mark_progress(step, step + left)
        if leave and left:
            say(rank, f"told to leave after step {step} of {step + left}: {args.checkpoint} is saved")
            return None
        if epoch % 5 == 0:
            say(rank, f"epoch {epoch} step {step} accuracy {accuracy(network, test_set, rank, world_size):.3f}")

    score = accuracy(network, test_set, rank, world_size)
    ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
    say(rank, f"accuracy {score:.3f} after {epoch} epochs on {ranks}")
    return score


def main() -> int:
    args = arguments()
    runtime.should_stop()  # from here on, a signal asks to leave, and ends nothing
    device = choose_device()
    rank, world_size = 0, 1
    distributed = "WORLD_SIZE" in os.environ
    if distributed:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        rank, world_size = dist.get_rank(), dist.get_world_size()
    score = train(args, device, rank, world_size)
    if distributed:
        dist.destroy_process_group()
    return 0 if score is None or score >= args.min_accuracy else 1


if __name__ == "__main__":
    sys.exit(main())

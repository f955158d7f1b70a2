"""Exchanges of buckets in one process group of four: `python -m tests.runtime.exchange_buckets FOLDER`.

Every rank knows all ranks' gradients, so it can say how far a sum is off; what it found lands in FOLDER/exchange<rank>.json.
"""

import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from chinchilla_sim.cost.codec import CODECS
from chinchilla_sim.models.digits import load_digits
from chinchilla_sim.runtime.exchanges.exchange import BucketExchange
from chinchilla_sim.runtime.worker import prepare_process

SHAPES = {
    "odd": [(7, 3), (5,), (1,)],
    "one-value": [()],
    "mlp": [(64, 48), (64,), (64, 48), (10, 64), (10,)],
    "convolution": [(8, 4, 3, 3), (512, 24), (300, 7, 3)],
}
STEPS = 3


def gradient(rank: int, step: int, index: int, shape: Sequence[int]) -> Tensor:
    """What a rank's backward pass made for one parameter."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(7919 * rank + 101 * step + index))


def exchange_all(members: int, group: Any, rank: int) -> Iterator[dict[str, Any]]:
    """Every codec and bucket among the first `members` ranks; two buckets are under way at once."""
    for codec in CODECS:
        exchanges = {
            name: BucketExchange(codec, [nn.Parameter(torch.zeros(shape)) for shape in shapes], group, members)
            for name, shapes in SHAPES.items()
        }
        given = {name: [torch.zeros(shape) for shape in shapes] for name, shapes in SHAPES.items()}
        got = {name: [torch.zeros(shape) for shape in shapes] for name, shapes in SHAPES.items()}
        worst = dict.fromkeys(SHAPES, 0.0)
        for step in range(STEPS):
            for exchange in exchanges.values():
                for index, parameter in enumerate(exchange.parameters):
                    parameter.grad = gradient(rank, step, index, parameter.shape)
                exchange.encode()
                exchange.issue()
            for name, exchange in exchanges.items():
                exchange.finish()
                for index, parameter in enumerate(exchange.parameters):
                    exact = torch.stack([gradient(other, step, index, parameter.shape) for other in range(members)]).sum(0)
                    given[name][index] += exact
                    got[name][index] += parameter.grad
                    worst[name] = max(worst[name], float((parameter.grad - exact).norm() / exact.norm()))
        for name, exchange in exchanges.items():
            yield {
                "codec": codec, "members": members, "bucket": name, "error": worst[name], "wire_bytes": exchange.wire_bytes,
                "lost": lost(exchange, given[name], got[name], group), "same": same(exchange, group, members),
            }  # fmt: skip


def lost(exchange: BucketExchange, given: Sequence[Tensor], got: Sequence[Tensor], group: Any) -> float:
    """Largest difference between all gradients and what arrived or is still kept in the residuals of all ranks."""
    state = exchange.state_dict()
    largest = 0.0
    for index, (gradients, sums) in enumerate(zip(given, got, strict=True)):
        kept = state.get(f"residual.{index}", torch.zeros(())).clone()
        dist.all_reduce(kept, group=group)
        largest = max(largest, float((gradients - sums - kept).abs().max()))
    return largest


def same(exchange: BucketExchange, group: Any, members: int) -> bool:
    """Whether all ranks hold the same sums to the last bit."""
    flat = torch.cat([parameter.grad.reshape(-1) for parameter in exchange.parameters])
    all_flat = [torch.empty_like(flat) for _ in range(members)]
    dist.all_gather(all_flat, flat, group=group)
    return all(torch.equal(flat, other) for other in all_flat)


def train(codec: str, feedback: bool, group: Any, rank: int) -> float:
    """Loss of a small network after training on the digits by two ranks; without feedback residuals are cleared in every step."""
    torch.manual_seed(0)
    samples = load_digits().train
    images = avg_pool2d(torch.from_numpy(samples.images[:1000]).float()[:, None] / 255, 2).flatten(1)
    labels = torch.from_numpy(samples.labels[:1000]).long()
    network = nn.Sequential(nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 10))
    exchange = BucketExchange(codec, list(network.parameters()), group, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        chosen = torch.randint(0, len(images), (64,), generator=generator)[32 * rank : 32 * rank + 32]
        (cross_entropy(network(images[chosen]), labels[chosen]) / 2).backward()
        exchange.encode()
        exchange.issue()
        exchange.finish()
        optimizer.step()
        optimizer.zero_grad()
        if not feedback:
            for name, tensor in exchange.state_dict().items():
                if name.startswith("residual"):
                    tensor.zero_()
    with torch.no_grad():
        return float(cross_entropy(network(images), labels))


def main(folder: Path) -> None:
    """All cases of this rank."""
    prepare_process()
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    try:
        found = list(exchange_all(2, pair, rank)) if rank < 2 else []
        found += exchange_all(4, None, rank)
        losses = {}
        if rank < 2:
            losses = {codec: train(codec, True, pair, rank) for codec in CODECS}
            losses |= {f"{codec} without feedback": train(codec, False, pair, rank) for codec, kind in CODECS.items() if kind.feedback}
    except BaseException:
        (folder / f"rank{os.environ['RANK']}.error").write_text(traceback.format_exc())
        raise
    (folder / f"exchange{rank}.json").write_text(json.dumps({"exchanges": found, "losses": losses}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What somebody wants of a first scenario: the options of `chinchilla init`, and what it asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["training", "inference"]
Objective = Literal["step_time", "cost", "energy", "latency"]


@dataclass(frozen=True)
class Wish:
    """What a user has said so far; None is not said.

    Parameters
    ----------
    model
        A model that comes with chinchilla_sim and runs (mnist_mlp, gpt, bert, resnet, ...), a published one to plan and simulate
        (llama-2-7b, gpt2-xl, resnet50, ...), a class of transformers (LlamaForCausalLM), or your own function (path/to/file.py:build).
    kind
        Train the model, or apply it.
    batch
        Samples of a step, over all devices.
    objective
        What the planner minimises.
    device
        A device of the catalogue, such as H100 (see `chinchilla catalogue`); default: this machine.
    count
        How many devices, by eights to a node; of this machine: ranks (default: one per core).
    network
        What joins the nodes: a bandwidth ("100 Gbit/s") or a link of the catalogue (infiniband-ndr).
    arrival_rate
        Requests that arrive in inference, such as "200 requests/s"; objective latency needs it.
    price
        Price of a node, or of this machine, such as "2 USD/h", where the catalogue does not know it.
    power
        Electric power of a device, or of this machine, such as "65 W".
    """

    model: str | None = None
    kind: Kind | None = None
    batch: int | None = None
    objective: Objective | None = None
    device: str | None = None
    count: int | None = None
    network: str | None = None
    arrival_rate: str | None = None
    price: str | None = None
    power: str | None = None

    @property
    def here(self) -> bool:
        """Whether it is about this machine."""
        from chinchilla_sim.scenario.cluster import THIS_MACHINE

        return self.device in (None, THIS_MACHINE)

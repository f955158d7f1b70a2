"""Task graphs from shape parameters alone, without torch and within milliseconds; equal to the traced graph of the same shape.

`FORMULAS` are the models that take their options by keyword, as `[model] formula = "llama"`, `options = { layers = 80, ... }`
says in a scenario; `PRESETS` are the options of published models.
"""

from collections.abc import Callable

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.basic import chain, linear_task, mlp, relu_task
from chinchilla_sim.graph.zoo.presets import PRESETS, Preset
from chinchilla_sim.graph.zoo.transformer import bert, gpt, llama, mixture_of_experts, mpt, t5, transformer_xl, vit
from chinchilla_sim.graph.zoo.vision import alexnet, inception_v3, resnet, vgg16

FORMULAS: dict[str, Callable[..., TaskGraph]] = {
    "alexnet": alexnet,
    "bert": bert,
    "gpt": gpt,
    "inception_v3": inception_v3,
    "llama": llama,
    "mixture_of_experts": mixture_of_experts,
    "mpt": mpt,
    "resnet": resnet,
    "t5": t5,
    "transformer_xl": transformer_xl,
    "vgg16": vgg16,
    "vit": vit,
}

__all__ = [
    "FORMULAS", "PRESETS", "Preset", "alexnet", "bert", "chain", "gpt", "inception_v3", "linear_task", "llama", "mixture_of_experts",
    "mlp", "mpt", "relu_task", "resnet", "t5", "transformer_xl", "vgg16", "vit",
]  # fmt: skip

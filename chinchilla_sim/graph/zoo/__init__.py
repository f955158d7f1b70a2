"""Task graphs from shape parameters alone, without torch and within milliseconds; equal to the traced graph of the same shape.

`FORMULAS` are the models that take their options by keyword, as `[model] formula = "llama"`, `options = { layers = 80, ... }`
says in a scenario; `PRESETS` are the options of published models. Transformers stand by how they tell positions apart: `transformer`,
`rotary` and `relative`.

Each formula takes `batch_size` and the fields of its dataclass by keyword; parameters are named as Hugging Face transformers names them.
Flop and parameters are those of a traced model; bytes of transformers are those of fused kernels: attention, GELU, RMSNorm and a rotation
by position are one task each, which reads and writes its tensor once, and masks are not stored. Eager code that spells them out moves two
to four times as much (the graph's notes say so). Dropout is absent when the model is applied.
"""

from collections.abc import Callable

from chinchilla_sim.graph.task import TaskGraph
from chinchilla_sim.graph.zoo.basic import chain, linear_task, mlp, relu_task
from chinchilla_sim.graph.zoo.presets import PRESETS, Preset
from chinchilla_sim.graph.zoo.relative import mpt, t5, transformer_xl
from chinchilla_sim.graph.zoo.rotary import llama, mixture_of_experts
from chinchilla_sim.graph.zoo.transformer import bert, gpt, vit
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

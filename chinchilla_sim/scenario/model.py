"""[model]: the neural network, given in one of four ways, and a smaller variant of it."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field

from chinchilla_sim.scenario.fields import Bytes, Count, Factory, Flop, Options
from chinchilla_sim.scenario.table import Table

ModelKind = Literal["builtin", "factory", "formula", "graph"]
Builtin = Literal["mnist_mlp", "huggingface", "bert", "dlrm", "fraud", "gpt", "resnet", "translation", "unet"]
WeightFormat = Literal["bf16", "int8", "int8-static", "int8-weights", "int4"]
Formula = Literal[
    "mlp",
    "chain",
    "alexnet",
    "bert",
    "gpt",
    "inception_v3",
    "llama",
    "mixture_of_experts",
    "mpt",
    "resnet",
    "t5",
    "transformer_xl",
    "vgg16",
    "vit",
]
SYNTHETIC_FORMULAS = ("mlp", "chain")
FORMULAS: tuple[str, ...] = get_args(Formula)
MODEL_KINDS: tuple[ModelKind, ...] = ("builtin", "factory", "formula", "graph")
MODEL_KEYS: Mapping[str, frozenset[str]] = {
    "builtin": frozenset({"builtin", "options", "weights", "compression"}),
    "factory": frozenset({"factory", "options", "weights", "compression"}),
    "mlp": frozenset({"formula", "widths", "compression"}),
    "chain": frozenset({"formula", "task_count", "parameter_count", "work", "output"}),
    "graph": frozenset({"graph", "format", "compression"}),
    **{formula: frozenset({"formula", "options", "compression"}) for formula in FORMULAS if formula not in SYNTHETIC_FORMULAS},
}


class CompressionSpec(Table):
    """A smaller variant of the model: what is done to it, in the order of these keys."""

    share_weights: bool = Field(default=False, description="All repeated blocks use the weights of the first (ALBERT).", examples=[True])
    tie_embeddings: bool = Field(
        default=False, description="Output layers use the table of the embedding of their shape as their weight.", examples=[True]
    )
    prune: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the neurons, channels and heads of every layer that is removed.", examples=[0.5]
    )
    low_rank: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the values of each layer's weight that two low-rank factors save.", examples=[0.5]
    )
    sparsity: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the values of every matrix that is zero, the least ones. It makes the file smaller, and nothing faster; "
        "in training it rises step by step over the first half of the run.",
        examples=[0.8],
    )
    quantize: WeightFormat | None = Field(
        default=None,
        description="Format of the weights; training only rounds to integers. Linear layers compute in bf16 or int8 (int8 quantizes inputs "
        "as they come, int8-static by scales from training data); int8-weights and int4 store integers and compute in bf16.",
        examples=["int8"],
    )
    fine_tune_epochs: int = Field(
        default=0,
        ge=0,
        description="Epochs that `validate variants` trains on behind this compression, before it measures accuracy.",
        examples=[5],
    )

    @property
    def changes_only(self) -> "CompressionSpec":
        """The same changes, without training behind them."""
        return self.model_copy(update={"fine_tune_epochs": 0})

    @property
    def changes(self) -> dict[str, Any]:
        """What is done to the model, by key; how it is trained afterwards is no part of it."""
        return self.model_dump(exclude={"fine_tune_epochs"})

    def describe(self) -> str:
        """A few words, such as `pruned 50 %, int8 weights`; `as it is` where nothing is done.

        >>> CompressionSpec(prune=0.5, quantize="int8").describe()
        'pruned 50 %, int8 weights'
        """
        words = ["shared weights"] * self.share_weights + ["tied embeddings"] * self.tie_embeddings
        words += [f"pruned {self.prune:.0%}".replace("%", " %")] * (self.prune > 0)
        words += [f"low rank, {self.low_rank:.0%} of values saved".replace("%", " %")] * (self.low_rank > 0)
        words += [f"{self.sparsity:.0%} of values zero".replace("%", " %")] * (self.sparsity > 0)
        words += [f"{self.quantize} weights"] * (self.quantize is not None)
        return ", ".join(words) or "as it is"


class ModelSpec(Table):
    """The neural network, given in exactly one way: builtin, factory, formula or graph."""

    builtin: Builtin | None = Field(
        default=None,
        description="A model that comes with chinchilla_sim, and runs; `options.preset` names its sizes.",
        examples=["mnist_mlp"],
    )
    factory: Factory | None = Field(
        default=None,
        description='Function that builds the torch model: "package.module:function" or "path/to/file.py:function". '
        "A file is looked up from the folder of the scenario.",
        examples=["models/transformer.py:build"],
    )
    formula: Formula | None = Field(
        default=None,
        description='A model by its formula, to plan only, without torch: "mlp" (dense layers), "chain" (a synthetic chain of equal '
        "tasks), or a published architecture whose shape `options` give.",
        examples=["llama"],
    )
    graph: str | None = Field(
        default=None, min_length=1, description="A task graph file, looked up from the folder of the scenario.", examples=["graph.json"]
    )
    format: Literal["chinchilla", "pipedream", "dnn-partitioning", "piper", "onnx"] | None = Field(
        default=None,
        description='Format of the graph file: "chinchilla" (our own JSON), "pipedream" (a profile, text), "dnn-partitioning" or "piper" '
        '(layer graphs with times, JSON), or "onnx".',
        examples=["chinchilla"],
    )
    options: Options = Field(
        default_factory=dict,
        description="Keyword arguments of the builtin or factory, or the shape of a formula; `preset` names a published one.",
        examples=[{"widths": [784, 512, 10], "shift_pixels": 2}],
    )
    weights: str | None = Field(
        default=None,
        min_length=1,
        description="A saved state_dict that the builtin or factory starts from, looked up from the folder of the scenario.",
        examples=["weights.pt"],
    )
    compression: CompressionSpec = Field(
        default_factory=CompressionSpec,
        description="Plan a smaller variant of the model (not of a graph file without shapes).",
        examples=[{"prune": 0.5, "quantize": "int8"}],
    )
    widths: tuple[Count, ...] = Field(
        default=(), strict=False, description="Layer widths of formula mlp, input first, output last.", examples=[[784, 512, 10]]
    )
    task_count: Count | None = Field(default=None, description="Tasks of formula chain.", examples=[8])
    parameter_count: int | None = Field(default=None, ge=0, description="Parameters of all tasks of formula chain.", examples=[1000000])
    work_flop: Flop | None = Field(
        default=None,
        alias="work",
        description="Work of one step of formula chain: all tasks, forward and backward, one global batch.",
        examples=["1e10 flop"],
    )
    output_bytes: Bytes | None = Field(
        default=None, alias="output", description="Output of each task of formula chain for one global batch.", examples=["4 MB"]
    )

    @property
    def kind(self) -> ModelKind:
        """Which of the four ways the model is given in."""
        return next(kind for kind in MODEL_KINDS if getattr(self, kind) is not None)

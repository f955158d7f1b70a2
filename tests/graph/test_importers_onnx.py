"""ONNX models, built here node by node: flop by hand, weights with their bytes, what is no model is refused."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from chinchilla_sim.errors import ScenarioError  # noqa: E402
from chinchilla_sim.graph.importers import graph_file, read_graph  # noqa: E402
from chinchilla_sim.graph.importers.onnx_operators import OP_OF, VALUE_BYTES  # noqa: E402
from chinchilla_sim.graph.profile import Profile  # noqa: E402
from chinchilla_sim.graph.task import Task, TaskGraph, Weight  # noqa: E402

Build = Callable[..., Path]
Graph = Callable[..., TaskGraph]
OPSETS = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]


def stored(name: str, *shape: int, kind: Any = np.float32) -> Any:
    """An initializer of zeros."""
    return numpy_helper.from_array(np.zeros(shape, kind), name)


def numbers(name: str, *values: int) -> Any:
    """An initializer of whole numbers, such as a shape."""
    return numpy_helper.from_array(np.array(values, np.int64), name)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; tensors are given by names in one text."""
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A writer of ONNX files: nodes, initializers, inputs (name and shape); outputs are those that no node reads."""

    def write(nodes: Sequence[Any], weights: Sequence[Any] = (), kind: int = TensorProto.FLOAT, **inputs: Sequence[int | str]) -> Path:
        read = {name for one in nodes for name in one.input}
        made = [name for one in nodes for name in one.output if name and name not in read]
        graph = helper.make_graph(
            list(nodes),
            "g",
            [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in made],
            list(weights),
        )
        path = tmp_path / "model.onnx"
        path.write_bytes(helper.make_model(graph, opset_imports=OPSETS).SerializeToString())
        return path

    return write


@pytest.fixture
def graph_of(build: Build) -> Graph:
    """The graph of a model of these nodes."""

    def read(*arguments: Any, **inputs: Any) -> TaskGraph:
        graph, profile = read_graph(build(*arguments, **inputs), "onnx")
        assert profile == Profile()
        return graph

    return read


def small_network(batch: int | str) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Convolution, batch norm, relu and a pool on 8x8 pixels, flattened by the shape, then a dense layer."""
    nodes = [
        node("Conv", "x cw cb", "c", name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("BatchNormalization", "c g b m v", "n"),
        node("Relu", "n", "r"),
        node("MaxPool", "r", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", "p", "s"),
        node("Gather", "s zero", "s0", axis=0),
        node("Concat", "s0 minus", "shape", axis=0),
        node("Reshape", "p shape", "f"),
        node("Gemm", "f w bias", "y", transB=1),
    ]
    weights = [
        stored("cw", 16, 3, 3, 3), *(stored(name, 16) for name in ("cb", "g", "b", "m", "v")), stored("w", 10, 256), stored("bias", 10),
        numbers("zero", 0), numbers("minus", -1),
    ]  # fmt: skip
    return nodes, weights, {"x": [batch, 3, 8, 8]}


def task_of(graph: TaskGraph, op: str) -> Task:
    """The only task of an operator."""
    (task,) = (task for task in graph.tasks if task.op == op)
    return task


def test_small_network_by_hand(graph_of: Graph) -> None:
    """Convolution 2 * 5 * 16 * 8 * 8 * 27, dense layer 2 * 5 * 256 * 10; shapes cost nothing, statistics are not trained."""
    nodes, weights, inputs = small_network(5)
    graph = graph_of(nodes, weights, **inputs)
    assert [task.op for task in graph.tasks] == ["input", "conv2d", "batch_norm", "relu", "max_pool2d", "reshape", "linear"]
    assert [task.name for task in graph.tasks] == ["x", "conv", "n", "r", "p", "f", "y"]
    assert graph.batch_size == 5
    conv, dense = task_of(graph, "conv2d"), task_of(graph, "linear")
    assert (conv.forward_flop, conv.input_gradient_flop, conv.weight_gradient_flop) == (5 * 55296, 0, 5 * 55296)
    assert dense.forward_flop == dense.input_gradient_flop == dense.weight_gradient_flop == 5 * 5120
    assert (conv.output_bytes, dense.output_bytes) == (4 * 5 * 16 * 64, 4 * 5 * 10)
    assert graph.weights["cw"] == Weight(4 * 432, (16, 3, 3, 3))
    assert graph.weights["m"] == Weight(4 * 16, (16,), trained=False, buffer=True)
    assert graph.parameter_count == 432 + 3 * 16 + 2560 + 10
    assert graph.edges == (("x", "conv"), ("conv", "n"), ("n", "r"), ("r", "p"), ("p", "f"), ("f", "y"))
    assert graph.notes == ("The file does not say which of its tensors are trained: all float parameters are taken to be.",)


def test_open_batch_is_one_sample(graph_of: Graph) -> None:
    """A batch without number is 1, and a note says so; everything is a fifth of the file with batch 5."""
    (nodes, weights, free), (_, _, fixed) = small_network("N"), small_network(5)
    one, five = graph_of(nodes, weights, **free), graph_of(nodes, weights, **fixed)
    assert one.batch_size == 1
    assert one.forward_flop * 5 == five.forward_flop
    assert "The file leaves the batch size open: all amounts are for one sample." in one.notes


@pytest.mark.parametrize("name", ["N", ""])
def test_batch_is_open_by_any_name(graph_of: Graph, name: str) -> None:
    """The first dimension may have another name, or none."""
    assert graph_of([node("Relu", "x", "y")], x=[name or None, 3]).tasks[1].shapes == ((1, 3),)


def test_imported_model_is_a_graph_file(graph_of: Graph, tmp_path: Path) -> None:
    """What was imported can be written in our own format, and is the same when read back."""
    nodes, weights, inputs = small_network(2)
    graph = graph_of(nodes, weights, **inputs)
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(graph_file(graph)))
    assert read_graph(path) == (graph, Profile())


@pytest.mark.parametrize(
    ("nodes", "weights", "op", "flop"),
    [
        ([node("MatMul", "x w", "y")], [stored("w", 6, 5)], "matmul", 2 * 4 * 6 * 5),
        ([node("Gemm", "x w c", "y")], [stored("w", 6, 5), stored("c", 5)], "addmm", 2 * 4 * 6 * 5),
        ([node("Gemm", "x w", "y", transB=1)], [stored("w", 5, 6)], "linear", 2 * 4 * 6 * 5),
        ([node("Gemm", "x w", "y", transA=1)], [stored("w", 4, 5)], "mm", 2 * 6 * 4 * 5),
        ([node("Gemm", "x w", "y", transA=1, transB=1)], [stored("w", 5, 4)], "linear", 2 * 6 * 4 * 5),
        ([node("Einsum", "x w", "y", equation="bi,io->bo")], [stored("w", 6, 5)], "einsum", 2 * 4 * 6 * 5),
        ([node("MatMul", "x x2", "y"), node("Transpose", "x", "x2")][::-1], [], "matmul", 2 * 4 * 6 * 4),
    ],
)
def test_products_of_matrices(graph_of: Graph, nodes: list[Any], weights: list[Any], op: str, flop: float) -> None:
    """Two per multiply-add, however the factors are stored; x is 4 by 6."""
    task = task_of(graph_of(nodes, weights, x=[4, 6]), op)
    assert task.forward_flop == flop
    assert task.weight_gradient_flop == (flop if weights else 0)


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes", "name", "flop"),
    [
        ("Conv", [2, 3, 9], (4, 3, 3), {}, "conv1d", 2 * 2 * 4 * 7 * 9),
        ("Conv", [2, 4, 5, 5], (4, 2, 1, 1), {"group": 2}, "conv2d", 2 * 2 * 4 * 25 * 2),
        ("Conv", [1, 1, 3, 3, 3], (2, 1, 3, 3, 3), {}, "conv3d", 2 * 2 * 27),
        ("ConvTranspose", [2, 3, 4, 4], (3, 5, 2, 2), {"strides": [2, 2]}, "conv_transpose2d", 2 * 2 * 3 * 16 * 5 * 4),
    ],
)
def test_convolutions(
    graph_of: Graph, op: str, shape: list[int], weight: tuple[int, ...], attributes: dict[str, Any], name: str, flop: float
) -> None:
    """Every rank, groups, and the transposed one."""
    graph = graph_of([node(op, "x w", "y", **attributes)], [stored("w", *weight)], x=shape)
    assert task_of(graph, name).forward_flop == flop


def test_recurrent_layer_by_hand(graph_of: Graph) -> None:
    """Two directions of 4 gates: 2 * 14 tokens * 2 * (20 * 4 + 20 * 5) flop; each direction has weights as PyTorch keeps them."""
    nodes = [node("LSTM", "x W R B", "Y h", hidden_size=5, direction="bidirectional"), node("Add", "h h", "z")]
    graph = graph_of(nodes, [stored("W", 2, 20, 4), stored("R", 2, 20, 5), stored("B", 2, 40)], x=[7, 2, 4])
    lstm = task_of(graph, "lstm")
    assert lstm.forward_flop == 2 * 14 * 2 * (20 * 4 + 20 * 5)
    assert lstm.parameters == ("W.0", "R.0", "B.0", "W.1", "R.1", "B.1")
    assert graph.total_parameter_bytes == 4 * (2 * 80 + 2 * 100 + 80)


def test_outputs_of_one_node_are_items(graph_of: Graph) -> None:
    """A consumer of one half of a split reads the bytes of that half."""
    graph = graph_of([node("Split", "x", "a b", axis=1, num_outputs=2), node("Relu", "b", "y"), node("Tanh", "a", "z")], x=[2, 6])
    assert task_of(graph, "relu").read_bytes == 4 * 2 * 3
    assert [task.op for task in graph.tasks] == ["input", "split", "getitem", "getitem", "relu", "tanh"]


def test_lookup_reads_rows_of_a_table(graph_of: Graph) -> None:
    """Gather from a stored table is an embedding: it reads one row of 8 values per index, not the table."""
    graph = graph_of([node("Gather", "table x", "y")], [stored("table", 1000, 8)], TensorProto.INT64, x=[2, 3])
    assert task_of(graph, "embedding").read_bytes == 2 * 3 * (8 + 4 * 8)


def test_one_constant_index_is_a_view(graph_of: Graph) -> None:
    """Gather of one index that the model holds moves nothing; a vector of indices does."""
    one = numpy_helper.from_array(np.array(1), "one")
    assert task_of(graph_of([node("Gather", "x one", "y", axis=1)], [one], x=[2, 3]), "select").launch_count == 0
    assert task_of(graph_of([node("Gather", "x two", "y", axis=1)], [numbers("two", 0, 1)], x=[2, 3]), "index_select").read_bytes > 0


def test_identity_of_a_weight_is_the_weight(graph_of: Graph) -> None:
    """Exporters write tied weights as Identity: they count once, and there is no task for it."""
    nodes = [node("Identity", "w", "v"), node("MatMul", "x w", "h"), node("MatMul", "h v", "y")]
    graph = graph_of(nodes, [stored("w", 6, 6)], x=[4, 6])
    assert [task.parameters for task in graph.tasks] == [(), ("w",), ("w",)]


def test_shapes_follow_computed_values(graph_of: Graph) -> None:
    """A head count that is divided out of a shape and cast, as exporters do, is followed; onnx's own inference stops at Div."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s last", "width"),
        node("Cast", "width", "float", to=TensorProto.FLOAT),
        node("Div", "float four", "quarter"),
        node("Cast", "quarter", "depth", to=TensorProto.INT64),
        node("Concat", "heads depth", "shape", axis=0),
        node("Reshape", "x shape", "y"),
        node("Relu", "y", "z"),
    ]
    four = numpy_helper.from_array(np.array([4], np.float32), "four")
    graph = graph_of(nodes, [numbers("last", 1), four, numbers("heads", -1, 4)], x=[2, 24])
    assert [(task.op, task.shapes) for task in graph.tasks] == [("input", ((2, 24),)), ("reshape", ((2, 4, 6),)), ("relu", ((2, 4, 6),))]
    assert not graph.weights


def test_dropout_counts_in_training_alone(graph_of: Graph) -> None:
    """Without training_mode it is a view of its input; with it, it keeps a mask."""
    flag = numpy_helper.from_array(np.array(True), "on")
    assert task_of(graph_of([node("Dropout", "x", "y")], x=[2, 3]), "alias").launch_count == 0
    nodes = [helper.make_node("Dropout", ["r", "", "on"], ["y"]), node("Mul", "x w", "r")]
    assert task_of(graph_of(nodes[::-1], [flag, stored("w", 3)], x=[2, 3]), "dropout").saved_bytes == 6


def test_quantized_weights_have_the_bytes_of_their_type(graph_of: Graph) -> None:
    """One byte per value, frozen; the scales are buffers."""
    nodes = [node("DequantizeLinear", "q scale", "w", axis=0), node("MatMul", "x w", "y")]
    graph = graph_of(nodes, [stored("q", 6, 5, kind=np.int8), stored("scale", 6)], x=[4, 6])
    assert graph.weights["q"] == Weight(30, (6, 5), trained=False)
    assert graph.weights["scale"] == Weight(24, (6,), trained=False, buffer=True)
    assert graph.parameter_count == 30


def test_half_precision(graph_of: Graph) -> None:
    """Two bytes per value of a float16 model."""
    graph = graph_of([node("MatMul", "x w", "y")], [stored("w", 6, 5, kind=np.float16)], TensorProto.FLOAT16, x=[4, 6])
    assert (graph.value_bytes, graph.tasks[0].output_bytes, graph.total_parameter_bytes) == (2, 48, 60)


def test_weight_of_two_nodes_is_listed_once(graph_of: Graph) -> None:
    """A tied weight counts once."""
    graph = graph_of([node("MatMul", "x w", "h"), node("MatMul", "h w", "y")], [stored("w", 6, 6)], x=[4, 6])
    assert graph.total_parameter_bytes == 4 * 36
    assert [task.parameters for task in graph.compute_tasks] == [("w",), ("w",)]


def test_unknown_operator_counts_by_bytes_and_is_noted(build: Build) -> None:
    """An operator of another domain reads its input and writes its output, whose shape the file states."""
    path = build([node("Foo", "x", "y", domain="my.domain")], x=[4, 6])
    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 2]))
    onnx.save(model, path)
    graph, _ = read_graph(path, "onnx")
    task = task_of(graph, "my.domain.Foo")
    assert (task.forward_flop, task.read_bytes, task.written_bytes) == (0, 96, 32)
    assert graph.notes == ("These operators have no formula here and are counted by the bytes they read and write: my.domain.Foo (1).",)


def test_branches_depend_on_what_they_read(graph_of: Graph) -> None:
    """The bodies of an If are not counted, but what they read is known before it runs."""
    value = helper.make_tensor_value_info("o", TensorProto.FLOAT, [2, 3])
    body = helper.make_graph([node("Relu", "h", "o")], "body", [], [value])
    nodes = [
        node("Tanh", "x", "h"),
        node("ReduceSum", "x", "sum", keepdims=0),
        node("Cast", "sum", "flag", to=TensorProto.BOOL),
        node("If", "flag", "y", then_branch=body, else_branch=body),
    ]
    graph = graph_of(nodes, x=[2, 3])
    assert {edge for edge in graph.edges if edge[1] == "y"} == {("flag", "y"), ("h", "y")}
    assert any("If (1)" in note for note in graph.notes)


def test_functions_of_the_file_are_opened(build: Build) -> None:
    """A function that the model brings along is read as its nodes."""
    path = build([node("Twice", "x", "y", domain="my.domain")], x=[2, 3])
    model = onnx.load(path)
    body = [node("Relu", "a", "b"), node("Tanh", "b", "c")]
    model.functions.append(helper.make_function("my.domain", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 18)]))
    onnx.save(model, path)
    assert [task.op for task in read_graph(path, "onnx")[0].tasks] == ["input", "relu", "tanh"]


def test_external_data_is_not_needed(build: Build) -> None:
    """Weights that lie in another file count by the shape that the model states; the other file need not be there."""
    path = build([node("MatMul", "x w", "y")], [stored("w", 6, 5)], x=[4, 6])
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere.bin")
    onnx.save(model, path)
    assert read_graph(path, "onnx")[0].total_parameter_bytes == 120


def mistakes_in(path: Path) -> str:
    """All mistakes of a file, as one text."""
    with pytest.raises(ScenarioError) as caught:
        read_graph(path, "onnx")
    assert caught.value.source == str(path)
    return "\n".join(str(mistake) for mistake in caught.value.mistakes)


@pytest.mark.parametrize(
    ("nodes", "weights", "shape", "message"),
    [
        ([], [], [2, 3], r"graph\.node: has no node"),
        ([node("Constant", "", "y", value_float=1.0)], [], [2, 3], r"no node computes anything"),
        ([node("Relu", "z", "y")], [], [2, 3], r"graph\.node\.0: reads 'z', which no input or earlier node makes"),
        ([node("Relu", "z", "y"), node("Relu", "x", "z")], [], [2, 3], r"graph\.node\.0: reads 'z'.*topological order"),
        ([node("Relu", "y", "y", name="loop")], [], [2, 3], r"graph\.node\.0 \(loop\): reads 'y'"),
        ([node("Relu", "x", "x")], [], [2, 3], r"makes 'x', which is there already"),
        ([node("MatMul", "x w", "y")], [stored("w", 5, 5)], [2, 3], r"shape"),
        ([node("Conv", "x w", "y")], [stored("w", 5)], [2, 3], r"graph\.node\.0|graph: its shapes"),
        ([node("Bar", "x", "y", domain="my.domain")], [], [2, 3], r"the shape or type of tensor 'y' is not known.*value_info"),
        ([node("Relu", "x", "y")], [], [2, "length"], r"graph\.input\.x: dimension 1 \(length\) has no number; export"),
        ([node("Relu", "x", "y")], [], [2, None], r"graph\.input\.x: dimension 1 \(unnamed\) has no number"),
        ([node("Relu", "x", "y")], [], [0, 3], r"the batch size is 0"),
        ([node("Relu", "x", "y")], [], [-2, 3], r"the batch size is -2"),
        ([node("Relu", "x", "y")], [], None, r"graph\.input\.x: the shape or type"),
    ],
)
def test_broken_models_are_told(build: Build, nodes: list[Any], weights: list[Any], shape: Any, message: str) -> None:
    """What hinders a model from being counted is told by node or input, with a cure."""
    assert re.search(message, mistakes_in(build(nodes, weights, x=shape)))


def test_truncated_models_are_refused_or_read(build: Build) -> None:
    """Any first part of a file is either refused or a smaller model."""
    nodes, weights, inputs = small_network(1)
    path = build(nodes, weights, **inputs)
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        try:
            read_graph(path, "onnx")
        except ScenarioError as error:
            assert error.source == str(path)


def test_spoilt_models_are_refused_or_read(build: Build) -> None:
    """Single bytes replaced at random: another model, or a ScenarioError; names that are no text too."""
    nodes, weights, inputs = small_network(1)
    path = build(nodes, weights, **inputs)
    whole, random = path.read_bytes(), Random(0)
    places = [index for index, byte in enumerate(whole) if byte]
    for _ in range(300):
        spoilt = bytearray(whole)
        spoilt[random.choice(places)] = random.randrange(256)
        path.write_bytes(spoilt)
        try:
            assert len(read_graph(path, "onnx")[0].digest) == 64
        except ScenarioError as error:
            assert error.source == str(path)


def test_onnx_is_an_extra(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the cure says how to get it."""
    path = build([node("Relu", "x", "y")], x=[2, 3])
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install 'chinchilla-sim[onnx]'" in mistakes_in(path)


def test_operators_are_those_of_onnx() -> None:
    """Every name in our table is an operator of onnx, and every type one of its types."""
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    assert set(OP_OF) - known <= {"Swish", "RMSNormalization", "Mish", "Gelu"}
    assert set(VALUE_BYTES) - set(TensorProto.DataType.keys()) <= {"INT2", "UINT2", "FLOAT8E8M0", "FLOAT4E2M1"}

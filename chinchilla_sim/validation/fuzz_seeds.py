"""Valid files of every kind that is read, small, with as many of their kinds' keys as go together: what the fuzzer spoils."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from chinchilla_sim.cluster.calibration import Calibration, EmulatedLinks, MachineKey
from chinchilla_sim.cluster.curves import LinearCurve
from chinchilla_sim.cluster.topology import Device
from chinchilla_sim.graph.importers import graph_file
from chinchilla_sim.graph.profile import Profile, TaskTime, Variant
from chinchilla_sim.graph.task import INPUT_OP, Task, TaskGraph, Weight
from chinchilla_sim.planner.accuracy import AS_IT_IS, AccuracyTable, Protocol, ShortRun
from chinchilla_sim.planner.plan import Plan
from chinchilla_sim.planner.plan_file import PlanFile
from chinchilla_sim.scenario.load import parse_scenario
from chinchilla_sim.scenario.schema import Scenario

NODES = """\
name = "two-nodes"
question = "Does a second node pay for itself?"

[model]
formula = "llama"
options = { preset = "llama-2-7b", tokens = 512 }
compression = { prune = 0.5, quantize = "int8" }

[job]
global_batch_size = 64
steps = 1000
precision = "bf16"
optimizer = "sgd"
momentum = 0.9
learning_rate_schedule = "cosine"
clip_gradient_norm = 1.0
checkpoint = "30 s"
restart = "5 min"

[cluster]
switches = ["core"]
grid_intensity = "400 g/kWh"

[[cluster.nodes]]
name = "big"
count = 2
devices = 8
device = "a100-sxm-80gb"
quota = 12
spot_price = "9 USD/h"
time_between_interruptions = "6 h"

[[cluster.nodes]]
name = "small"
peak = "10 Tflop/s"
memory = "16 GiB"
memory_bandwidth = "50 GB/s"
price = "2 USD/h"
power = "300 W"

[cluster.network]
topology = "tree"
rack_size = 2
oversubscription = 4.0
bandwidth = "100 Gbit/s"
latency = "5 us"

[[cluster.links]]
between = ["small", "core"]
bandwidth = "10 Gbit/s"
latency = "50 us"

[cluster.intra_node]
link = "nvlink-4"

[search]
objective = "cost"
deadline = "3 d"
budget = "500 USD"
executable = false
microbatch_counts = [1, 4]
schedules = ["1f1b", "zb-h1"]
zero_stages = [0, 1, 3]
recompute = ["none", "full"]
gradient_codecs = ["none", "int8"]
variants = [{ prune = 0.5 }, { quantize = "bf16" }]

[disturbances]
jitter = 0.05
straggler_chance = 0.01

[[disturbances.links]]
between = ["big-0", "small"]
start = "10 ms"
end = "60 ms"
factor = 0.1

[[disturbances.traffic]]
between = ["big-0", "big-1"]
bandwidth = "1 Gbit/s"

[disturbances.failures]
mean_time_between_failures = "1000 h"
checkpoint = "30 s"
restart = "5 min"
"""

HERE = """\
model = { formula = "mlp", widths = [784, 512, 10] }

[job]
kind = "inference"
global_batch_size = 64
arrival_rate = "200 requests/s"

[cluster]
kind = "this-machine"
ranks = 2
price = "0.2 USD/h"
power = "65 W"

[search]
objective = "latency"
maximum_latency = "50 ms"
activation_codecs = ["none", "int8"]
"""

PIPEDREAM = """\
node1 -- Input -- forward_compute_time=7.000, backward_compute_time=0.000, activation_size=400.0, parameter_size=0.000
node2 -- LSTM(10, 10) -- forward_compute_time=2.000, backward_compute_time=3.000, activation_size=[400.0; 40.0], parameter_size=3200.000
node3 -- __getitem__(0) -- forward_compute_time=0.000, backward_compute_time=0.000, activation_size=400.0, parameter_size=0.000
node4 -- Add -- forward_compute_time=0.500, backward_compute_time=0.500, activation_size=400.0, parameter_size=0.000 -- stage_id=1
\tnode1 -- node2
\tnode2 -- node3
\tnode3 -- node4
\tnode1 -- node4
"""

DNN_PARTITIONING = """\
{"maxSizePerFPGA": 1000.0, "maxFPGAs": 2, "maxCPUs": 1,
 "nodes": [
  {"id": 1, "name": "a", "supportedOnFpga": 1, "cpuLatency": 10.0, "fpgaLatency": 1.0, "isBackwardNode": 0, "colorClass": 1, "size": 10.0},
  {"id": 2, "name": "b", "supportedOnFpga": 0, "cpuLatency": 20.0, "fpgaLatency": 0.0, "isBackwardNode": 0, "size": 20.0},
  {"id": 7, "name": "a_grad", "supportedOnFpga": 1, "cpuLatency": 4.0, "fpgaLatency": 4.0, "isBackwardNode": true, "colorClass": 1,
   "size": 3.0}],
 "edges": [{"sourceId": 1, "destId": 2, "cost": 0.5, "size": 64.0}, {"sourceId": 2, "destId": 7, "cost": 0.25}]}
"""

PIPER = """\
{"maxDevices": 4, "maxMemoryPerDevice": 1e9, "bandwidth": 1e9, "mbsInBatch": 8,
 "nodes": [
  {"id": 0, "name": "tensor", "TMPCs": {"1": [{"id": "vanilla", "timePerSample": 0.0, "parameterSize": 0.0, "memoryUsageA": 2.0,
   "memoryUsageB": 0.0, "syncTimeFw": {}, "syncTimeBw": {"1": 0.0}}]}},
  {"id": 1, "name": "Layer", "TMPCs": {
   "2": [{"id": "vanilla", "timePerSample": 0.2, "parameterSize": 40.0, "memoryUsageA": 5.0, "memoryUsageB": 80.0,
          "syncTimeFw": {"0": 8.0}, "syncTimeBw": {}}],
   "1": [{"id": "activation recomp", "timePerSample": 1.0, "parameterSize": 80.0, "memoryUsageA": 1.0, "memoryUsageB": 160.0,
          "syncTimeFw": {"0": 0.0}, "syncTimeBw": {}},
         {"id": "vanilla", "timePerSample": 0.75, "parameterSize": 80.0, "memoryUsageA": 9.0, "memoryUsageB": 160.0,
          "syncTimeFw": {"0": 0.0}, "syncTimeBw": {}}]}}],
 "edges": [{"sourceId": 0, "destId": 1, "communicationCost": 100.0}]}
"""

HUGGING_FACE = """\
{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
 "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 128, "rope_theta": 500000.0,
 "tie_word_embeddings": false, "bos_token_id": 1, "torch_dtype": "bfloat16", "sliding_window": 64}
"""

MEGATRON = """\
#!/bin/bash
NODES=2
MODEL_ARGS=(
    --num-layers 4   # small
    --hidden-size 64 --num-attention-heads 4 --seq-length 128 --max-position-embeddings 128 --vocab-size 512
)
PARALLEL_ARGS="--tensor-model-parallel-size ${TP:-2} --pipeline-model-parallel-size 2 --sequence-parallel"
torchrun --nproc_per_node 8 --nnodes $NODES pretrain_gpt.py "${MODEL_ARGS[@]}" $PARALLEL_ARGS \\
    --micro-batch-size 1 --global-batch-size 64 --train-iters 1000 --lr 3e-4 --lr-decay-style cosine --lr-warmup-iters 100 \\
    --recompute-granularity full --use-distributed-optimizer --overlap-grad-reduce --bf16 --clip-grad 1.0 --data-path $DATA
"""

DEEPSPEED = """\
{"train_batch_size": 64, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "gradient_clipping": 1.0,
 "bf16": {"enabled": true}, "optimizer": {"type": "AdamW", "params": {"lr": 3e-4, "betas": [0.9, 0.95]}},
 "scheduler": {"type": "WarmupDecayLR", "params": {"warmup_num_steps": 100, "total_num_steps": 1000}},
 "zero_optimization": {"stage": 3, "overlap_comm": true, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "cpu"}},
 "communication_data_type": "bf16", "steps_per_print": 10}
"""

PROGRAM = "0F0,0F1,,0B0,0B1\n,1F0,(1F1;1B0)OVERLAP_F_B,1B1,1UNSHARD\n"
SPLIT_PROGRAM = "0F0,0F1,0I0,0W0,0I1,0W1\n,1F0,1I0,1F1,1I1,1W0,1W1\n"


def scenario_tables() -> Scenario:
    """The scenario that the plans are for."""
    node = {"name": "node", "count": 4, "peak": "10 Tflop/s", "memory": "16 GiB"}
    cluster = {"nodes": [node], "network": {"bandwidth": "10 Gbit/s", "latency": "50 us"}}
    model = {"formula": "mlp", "widths": [8, 8, 8]}
    return parse_scenario({"name": "seed", "model": model, "job": {"global_batch_size": 16}, "cluster": cluster}, "seed")


def plans() -> tuple[bytes, ...]:
    """Plan files: two stages with two replicas each, and rows written out."""
    replicated = Plan(
        stages=(("linear", "relu"), ("linear_1", "loss")),
        placement=((0, 1), (2, 3)),
        slots=(0, 1, 2, 3),
        global_batch_size=16,
        microbatch_count=2,
        schedule="1f1b",
        gradient_codecs=("none", "int8"),
        activation_codecs=("fp16",),
        recompute=("none", "full"),
        zero_stage=1,
        gradient_buckets=2,
        replica_microbatch_counts=(2, 2),
    )
    rows = ("0F0 0F1 0B0 0B1", "1F0 1B0 1F1 1I1 1W1")
    custom = replace(
        replicated,
        placement=((0,), (1,)),
        slots=(2, 3),
        gradient_codecs=("none", "none"),
        replica_microbatch_counts=(),
        schedule="custom",
        order=rows,
        zero_stage=0,
        gradient_buckets=1,
    )
    files = (PlanFile(plan, scenario_tables(), {"graph": "0" * 64}, 0.5) for plan in (replicated, custom))
    return tuple(_as_json(file.to_dict()) for file in files)


def task_graph() -> bytes:
    """Our own graph file, with a profile."""
    product = Task(
        "y",
        "linear",
        forward_flop=64.0,
        weight_gradient_flop=64.0,
        output_bytes=32.0,
        parameters=("w",),
        saved=("x",),
        operands=("x", "weight:w"),
    )
    group = Task("g", "group", output_bytes=32.0, shapes=((2, 4),), members=(Task("relu", "relu", attributes=(("alpha", 0.5),)),))
    tasks = (Task("x", INPUT_OP, output_bytes=32.0, needs_gradient=False, launch_count=0), product, group)
    graph = TaskGraph("small", 2, tasks, (("x", "y"), ("y", "g")), {"w": Weight(64.0, (4, 4))}, "by hand", notes=("made up",))
    times = (TaskTime("y", 1, 0.5, 0.25, "cpu", 4, 0.125), TaskTime("y", 2, 1.0, 0.5, "cpu", 4))
    variant = Variant(2, True, 1.0, 2.0, 3.0, 4.0, (("x", 8.0),), (("g", 8.0),))
    profile = Profile(times, {"y": 8.0}, {"y": "1", "g": "1"}, {"y": (variant,)}, "by hand", 0.5, pass_start_s=(0.1, 0.2))
    return _as_json(graph_file(graph, profile))


def onnx_model() -> bytes | None:
    """A linear layer and its activation as ONNX; None without the package."""
    try:
        import onnx
    except ImportError:
        return None
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 4], [0.5] * 12)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["h"], transB=0), helper.make_node("Relu", ["h"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in (("x", 3), ("y", 4))]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], [weight])
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return bytes(model.SerializeToString())


def calibration() -> bytes:
    """What `chinchilla calibrate` stores."""
    curve = LinearCurve("int8", 1e-6, 1e-11, 1e-10, 1e-10, (1, 64), (64,), (10, 512), (1.0, 1.1, 0.9, 1.0))
    device = Device(
        "core, 1 busy", 1e11, 1e10, 3e10, 1e-5, 1e-5, inference_fixed_s=1e-5, linear=(curve,), reread=((1e6, 1e-10), (1e8, 2e-10))
    )
    tables = {("all_reduce", 2): ((1024.0, 3e-4), (65536.0, 5e-4)), ("all_gather", 2): ((1024.0, 3e-4),)}
    key = MachineKey("some processor", 2, "2.13.0+cpu", 1)
    devices = {1: device, 2: replace(device, name="core, 2 busy", linear=(), reread=())}
    return _as_json(Calibration(key, "2026-11-23", devices, 1e-4, 4e9, tables, {1: 0.09, 2: 0.08}, EmulatedLinks(1e-9, 1e-5)).to_dict())


def accuracy_table() -> bytes:
    """What `chinchilla calibrate --accuracy` stores."""
    runs = []
    for seed in range(3):
        for change, loss in ((AS_IT_IS, 0.2), ("gradients: int8", 0.21), ("local_steps: 4", 0.25)):
            metrics = {"validation_accuracy": (0.1, 0.8, 0.9 - loss / 10), "validation_loss": (2.3, 0.5 + loss, loss)}
            runs.append(ShortRun(change, seed, (0, 20, 40), metrics, 1000.0, 4000.0))
    job: Mapping[str, Any] = {
        "graph": "0" * 64,
        "kind": "training",
        "global_batch_size": 64,
        "options": {"shift_pixels": 1},
        "weights": None,
    }
    table = AccuracyTable(job, Protocol(40), tuple(runs), "2026-11-28", "torch", {"variant: int4 weights": "does not train"})
    return _as_json(table.to_dict())


def _as_json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()

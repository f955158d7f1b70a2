"""Read task graphs and profiles from files; `read_graph` gives both, or a ScenarioError with every mistake of the file.

    chinchilla         our own JSON                                     native.py
    pipedream          PipeDream's profiled layer graph, text           pipedream.py
    dnn-partitioning   layer graph with accelerator and CPU times       dnn_partitioning.py
    piper              layers with tensor-parallel, recompute choices   piper.py
    onnx               an ONNX model                                    onnx.py

What a format does not say stands in the `notes` of the graph.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from chinchilla_sim.errors import Mistake, ScenarioError
from chinchilla_sim.graph.importers.dnn_partitioning import read_dnn_partitioning
from chinchilla_sim.graph.importers.native import graph_file, read_native
from chinchilla_sim.graph.importers.onnx import read_onnx
from chinchilla_sim.graph.importers.pipedream import read_pipedream
from chinchilla_sim.graph.importers.piper import read_piper
from chinchilla_sim.graph.profile import Profile
from chinchilla_sim.graph.task import TaskGraph

__all__ = ["READERS", "graph_file", "read_graph"]

READERS: Mapping[str, Callable[[Path], tuple[TaskGraph, Profile]]] = {
    "chinchilla": read_native,
    "pipedream": read_pipedream,
    "dnn-partitioning": read_dnn_partitioning,
    "piper": read_piper,
    "onnx": read_onnx,
}


def read_graph(path: Path, format: str = "chinchilla") -> tuple[TaskGraph, Profile]:
    """The graph in a file of a format of `READERS`, and what the file says about times; the profile is empty where it says nothing."""
    if format not in READERS:
        raise ScenarioError([Mistake("model.format", f"{format!r} is no format of graph files", f"known are {', '.join(READERS)}")])
    return READERS[format](path)

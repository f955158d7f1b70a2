"""The shape of a scenario: every table, every key, its unit and its default.

    Scenario
    ├── model    ModelSpec      what is computed: builtin, factory, formula or graph
    │   └── compression CompressionSpec   a smaller variant of it
    ├── job      JobSpec        what is asked of it: training or inference
    ├── cluster  ClusterSpec    what it can run on
    │   ├── nodes       NodeSpec ...
    │   ├── network     NetworkSpec
    │   ├── links       LinkSpec ...
    │   └── intra_node  IntraNodeSpec
    ├── search   SearchSpec     what the planner may choose from
    └── disturbances DisturbanceSpec   what makes one step differ from the next
        ├── links    LinkChangeSpec ...
        ├── traffic  TrafficSpec ...
        └── failures FailureSpec

A TOML key says `bandwidth = "10 Gbit/s"`; its attribute says `bandwidth_bytes_per_s`, a float. Pydantic stays in this folder: everyone
else sees frozen values. Rules that join several keys are in `check.py`.
"""

import json
from typing import Any

from pydantic import Field

from chinchilla_sim.scenario.cluster import CLUSTER_KEYS, ClusterSpec
from chinchilla_sim.scenario.disturbances import DisturbanceSpec
from chinchilla_sim.scenario.fields import FolderName
from chinchilla_sim.scenario.job import JobSpec
from chinchilla_sim.scenario.model import MODEL_KEYS, ModelSpec
from chinchilla_sim.scenario.search import SearchSpec
from chinchilla_sim.scenario.table import Table


class Scenario(Table):
    """One question: this job of this model on this cluster, searched like this."""

    name: FolderName = Field(
        default="scenario", description="Names the folder of reports; default: the file's stem.", examples=["two-nodes"]
    )
    question: str = Field(
        default="",
        description="One sentence, shown in reports.",
        examples=["Does a second node pay for itself over a 200 Mbit/s link?"],
    )
    model: ModelSpec = Field(description="The neural network.")
    job: JobSpec = Field(description="What is asked of it.")
    cluster: ClusterSpec = Field(description="What it can run on.")
    search: SearchSpec = Field(default_factory=SearchSpec, description="What the planner may choose from.")
    disturbances: DisturbanceSpec | None = Field(default=None, description="What makes one step differ from the next.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able tables from which `parse_scenario` makes an equal Scenario, to the last bit of every float."""
        tables = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        belonging = MODEL_KEYS[self.model.formula or self.model.kind]
        tables["model"] = {key: value for key, value in tables["model"].items() if key in belonging}
        tables["cluster"] = {key: value for key, value in tables["cluster"].items() if key in CLUSTER_KEYS[self.cluster.kind]}
        return tables

    def defaults(self) -> dict[str, str]:
        """What this scenario does not state and takes from the schema, by dotted key, as text."""
        found: dict[str, str] = {}
        tables = {"job": self.job, "search": self.search}
        if self.cluster.nodes:
            tables |= {"cluster.network": self.cluster.network}
        for name, table in tables.items():
            written = table.model_dump(mode="json", by_alias=True)
            for key, field in type(table).model_fields.items():
                value = written[field.alias or key]
                if key not in table.model_fields_set and value not in (None, [], {}):
                    found[f"{name}.{field.alias or key}"] = json.dumps(value, ensure_ascii=False)
        return found

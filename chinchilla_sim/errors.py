"""The few exceptions a user meets; every one says what, where and what to do.

ChinchillaError                 exit 1   caught once, in cli.py
├── ScenarioError               exit 2   bad input, all mistakes at once
├── NoFeasiblePlanError         exit 1   the question has no answer: which constraint, by how much, what would help
└── RunError                    exit 1   a plan was started for real and did not finish
    ├── DeadlockError           exit 1   its ranks wait for each other; where a file says so, it is told as bad input
    └── RankLostError           exit 1   a process was killed, which is no fault of the job: the run may start again
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

MOST_SHOWN = 40
"""A file of another kind altogether has a mistake on every line: nobody reads hundreds."""


class ChinchillaError(Exception):
    """Anything a user can cause and cure; `exit_code` is what the command returns."""

    exit_code: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: what a command with --json prints in place of its result."""
        return {"status": "failed", "problem": str(self)}


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong with the input: `where` is a dotted path ("" for the whole file), `cure` is what to write instead.

    >>> print(Mistake("cluster.network.bandwidth", '"10" has no unit', 'write for example "10 Gbit/s"'))
    cluster.network.bandwidth: "10" has no unit; write for example "10 Gbit/s"
    """

    where: str
    what: str
    cure: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        cure = f"; {self.cure}" if self.cure else ""
        return f"{place}{self.what}{cure}"


def why_unreadable(error: Exception) -> str:
    """Why a file cannot be read, in words, without what the operating system adds.

    >>> why_unreadable(FileNotFoundError(2, "No such file or directory", "plan.json"))
    'there is no such file'
    """
    known = {FileNotFoundError: "there is no such file", IsADirectoryError: "it is a folder", UnicodeDecodeError: "it is not UTF-8 text"}
    return known.get(type(error)) or (error.strerror if isinstance(error, OSError) and error.strerror else str(error))


class ScenarioError(ChinchillaError):
    """The input is wrong; str() lists the mistakes on lines of their own, each after the name of its file.

    >>> print(ScenarioError([Mistake("job.epochs", "must be at least 1, not 0")], source="scenario.toml"))
    scenario.toml: job.epochs: must be at least 1, not 0
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, mistakes: Sequence[Mistake], source: str | None = None) -> None:
        self.mistakes = tuple(mistakes)
        self.source = source
        super().__init__(self.mistakes, source)  # args rebuild the error when it is pickled between ranks

    def __str__(self) -> str:
        place = f"{self.source}: " if self.source else ""
        lines = [f"{place}{mistake}" for mistake in self.mistakes[:MOST_SHOWN]]
        more = len(self.mistakes) - len(lines)
        return "\n".join([*lines, *([f"{place}and {more} more mistakes like these"] if more else [])])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the file, where it is known, and all of its mistakes."""
        return {"status": "bad input", "file": self.source, "mistakes": [asdict(mistake) for mistake in self.mistakes]}


class NoFeasiblePlanError(ChinchillaError):
    """No plan meets the scenario, or the one of a file does not: an answer, not a crash.

    >>> print(NoFeasiblePlanError("device memory", "the best plan needs 21 GB of 16 GB", "allow recompute or add a node"))
    no feasible plan: device memory: the best plan needs 21 GB of 16 GB; allow recompute or add a node
    >>> print(NoFeasiblePlanError("device memory", "rank 0 needs 21 GB of 16 GB", "plan again", "plan.json"))
    plan.json: is not feasible: device memory: rank 0 needs 21 GB of 16 GB; plan again
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, constraint: str, shortfall: str, cure: str, source: str | None = None) -> None:
        self.constraint = constraint
        self.shortfall = shortfall
        self.cure = cure
        self.source = source
        super().__init__(constraint, shortfall, cure, source)

    def __str__(self) -> str:
        what = f"{self.source}: is not feasible" if self.source else "no feasible plan"
        return f"{what}: {self.reason}"

    @property
    def reason(self) -> str:
        """Which constraint, by how much, and what would help."""
        return f"{self.constraint}: {self.shortfall}; {self.cure}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: there is no plan, and why."""
        why = {"constraint": self.constraint, "shortfall": self.shortfall, "cure": self.cure}
        return {"status": "infeasible", "file": self.source, "plan": None, **why}


class RunError(ChinchillaError):
    """A real run failed; the message names the rank and action where it stopped, and what to do."""

    exit_code: ClassVar[int] = 1


class DeadlockError(RunError):
    """Actions that wait for each other in a circle, and the `ranks` whose rows they stand in."""

    def __init__(self, waiting: str, ranks: tuple[int, ...]) -> None:
        self.waiting = waiting
        self.ranks = ranks
        super().__init__(waiting, ranks)

    def __str__(self) -> str:
        return f"the program deadlocks: {self.waiting}"


class RankLostError(RunError):
    """A process of a real run was killed from outside; none has a traceback of its own."""

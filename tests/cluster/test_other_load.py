"""How busy other programs keep the cores."""

import subprocess
import sys
import time

import pytest

from chinchilla_sim.cluster import other_load as module
from chinchilla_sim.cluster.other_load import NOTICED_CORES, OtherLoad, load_warning

SPIN = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


def test_own_work_and_that_of_children_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 3 busy seconds on two cores 2 were our own and our ended children's: within 4 s others kept a quarter of a core busy."""
    moments = iter([(10.0, 1.0), (13.0, 3.0)])
    clock = iter([100.0, 104.0])
    monkeypatch.setattr(module, "_counts", lambda: next(moments))
    monkeypatch.setattr(module, "monotonic", lambda: next(clock))
    assert OtherLoad().cores() == pytest.approx(0.25)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts of /proc")
def test_a_busy_neighbour_is_noticed_and_a_child_that_ended_is_not() -> None:
    """A program that still runs while we look is another's load; one of ours that has ended in between is our own."""

    def looked_at(command: list[str], wait: bool) -> float:
        watch = OtherLoad()
        with subprocess.Popen(command) as process:
            if wait:
                process.wait()
            else:
                time.sleep(1.5)
            found = watch.cores()
            process.kill()
        assert found is not None
        return found

    running = looked_at([sys.executable, "-c", SPIN.format(seconds=30)], wait=False)
    ended = looked_at([sys.executable, "-c", SPIN.format(seconds=1.5)], wait=True)
    # Others may compute here during this test: they count in both.
    assert running > ended + 0.3


def test_only_what_spoils_a_measurement_is_warned_of() -> None:
    """Below a fifth of a core, or where the system does not tell, nothing is said."""
    assert load_warning(NOTICED_CORES / 2, "x") is None and load_warning(None, "x") is None
    assert "0.38 cores are busy" in str(load_warning(0.38, "are busy"))

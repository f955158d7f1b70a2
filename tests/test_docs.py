"""What the documentation shows is run: every Python block that imports something, in a folder of its own beside the scenarios."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def python_blocks(text: str) -> list[str]:
    """Blocks that stand for themselves; others, such as signatures, import nothing.

    >>> python_blocks("```python\\ndef model(): ...\\n```\\ntext\\n```python\\nimport os\\n```\\n")
    ['import os\\n']
    """
    return [block for block in BLOCK.findall(text) if re.search(r"^(import|from) ", block, re.MULTILINE)]


BLOCKS = [(file.name, block) for file in sorted(ROOT.glob("*.md")) for block in python_blocks(file.read_text())]


@pytest.mark.parametrize(("file", "block"), BLOCKS, ids=[f"{file}-{number}" for number, (file, _) in enumerate(BLOCKS)])
def test_python_of_the_documentation_runs(file: str, block: str, tmp_path: Path) -> None:
    """It ends without an error, and prints what a comment beside a print says, where one does."""
    (tmp_path / "scenarios").symlink_to(ROOT / "scenarios")
    told = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert told.returncode == 0, f"{file}: {told.stderr}"
    for expected in re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE):
        assert expected in told.stdout.splitlines(), f"{file}: {told.stdout}"

"""Real English text that every Python has on disk: the topics of `pydoc_data`, Python's language reference.

The wording differs a little between versions of Python; figures measured by this project are of Python 3.11. Some topics
repeat parts of others (`compound` holds `try`, `specialnames` holds `customization`), so paragraphs are taken once:
what is held back for validation must not stand word for word in what is trained on.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pydoc_data.topics import topics

RULE = re.compile(r"[-+=| ]*[-=]{3}[-+=| ]*")
WORD = re.compile(r"[a-z_]+|[0-9]+|[^\sa-z0-9_]")


def paragraphs_of(topic: str) -> list[str]:
    """Paragraphs of one topic, in order, each once, without the rules of tables and white space at their ends."""
    lines = (line for line in topics[topic].splitlines() if not RULE.fullmatch(line))
    parts = (part.strip() for part in re.split(r"\n\s*\n", "\n".join(lines)))
    return list(dict.fromkeys(part for part in parts if part))


def running_text() -> str:
    """All topics in the order of their names, every paragraph once."""
    parts = dict.fromkeys(part for topic in sorted(topics) for part in paragraphs_of(topic))
    return "\n\n".join(parts)


def distinct_words(names: Iterable[str]) -> dict[str, list[str]]:
    """Words and signs, in small letters, of each topic's paragraphs that no other of these topics has."""
    paragraphs = {name: paragraphs_of(name) for name in names}
    owners = Counter(part for parts in paragraphs.values() for part in parts)
    return {
        name: [word for part in parts if owners[part] == 1 for word in WORD.findall(part.lower())] for name, parts in paragraphs.items()
    }

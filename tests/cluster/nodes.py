"""Losing a Ray node as a machine is lost: all of its processes at once, with no time for a last word."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any


def lose(cluster: Any, node: Any) -> list[str]:
    """SIGKILL to the raylet, its workers and its agents; what they were called."""
    own = [found.process.pid for kind in node.all_processes.values() for found in kind]
    doomed = [*own, *(child for pid in own for child in _below(pid))]
    names = [_name(pid) for pid in doomed]
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    return names


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def _below(pid: int) -> list[int]:
    """Children of a process, and theirs."""
    try:
        text = " ".join(path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children"))
    except OSError:
        return []
    return [found for child in map(int, text.split()) for found in (child, *_below(child))]

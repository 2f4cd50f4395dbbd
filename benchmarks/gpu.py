"""What a device does for the shipped models, and whether every promise holds on it. `python benchmarks/gpu.py`.

    PYTHONPATH=. python benchmarks/gpu.py --provider cuda --seconds 40 [--only models,seeds] [--out gpu.json]

Each section of benchmarks/gpusessions.py and gpuserving.py runs in a process of its own, so that one that raises,
crashes or hangs costs none of the others: what it had found is kept, beside its traceback or its status and what it
printed last. The file is written anew after each section. On `--provider cpu` everything runs too, and says nothing of
a device.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import gpuserving, gpusessions
from benchmarks.gpuground import Found, Ground, Tell
from benchmarks.server import machine

SECTIONS: dict[str, Callable[[Ground, Tell], None]] = {
    "models": gpusessions.models,
    "seeds": gpusessions.seeds,
    "shapes": gpusessions.shapes,
    "engine": gpuserving.engine,
    "server": gpuserving.server,
    "rates": gpusessions.rates,
    "shortage": gpuserving.shortage,
    "variants": gpusessions.variants,
}
"""By name, the most telling first: where time runs out the last are left."""
SHARE = 0.6
"""Of the time that is left a section may take so much, so that one that hangs leaves some for the others."""
LEAST_S = 2.0
"""A section is not begun with less time than this left."""
ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run the sections; 1 where one of them failed."""
    arguments = _parser().parse_args()
    names = arguments.only.split(",") if arguments.only else list(SECTIONS)
    if unknown := set(names) - set(SECTIONS):
        raise SystemExit(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(SECTIONS)}")
    out: Path = arguments.out or Path(os.environ.get("OUT", ".")) / "gpu.json"
    ground = Ground(arguments.models.resolve(), arguments.provider, arguments.seconds)
    if arguments.within:
        return _within(names[0], ground, out)
    end_s = time.monotonic() + arguments.limit
    report: Found = {"machine": machine(), "provider": ground.provider, "seconds": ground.seconds}
    for name in names:
        began_s = time.monotonic()
        left_s = end_s - began_s
        report[name] = _apart(name, arguments, left_s if name == names[-1] else SHARE * left_s)
        report[name]["took_s"] = round(time.monotonic() - began_s, 1)
        out.write_text(json.dumps(report, indent=1) + "\n")
        for line in lines(name, report[name]):
            print(line, flush=True)
    return int(any(failed(report[name]) for name in names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Pixels, the seed promise, speed, memory and the server on a device.")
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--provider", default="cuda", help="as GANYMEDE_PROVIDERS (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="to measure for, over all sections")
    parser.add_argument("--limit", type=float, default=90.0, help="seconds of wall time, after which nothing is begun")
    parser.add_argument("--only", help=f"of these sections, comma-separated: {','.join(SECTIONS)}")
    parser.add_argument("--out", type=Path, help="the JSON file (default: gpu.json in $OUT, or here)")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    return parser


def _within(name: str, ground: Ground, out: Path) -> int:
    """One section in this process; what it finds, and its traceback, goes to the file."""
    found: Found = {}

    def tell(key: str, value: object) -> None:
        found[key] = value
        partial = out.with_suffix(".tmp")
        partial.write_text(json.dumps(found))
        partial.replace(out)  # whole at any moment, for who comes when this has crashed

    try:
        SECTIONS[name](ground, tell)
    except Exception:
        tell("error", traceback.format_exc())
    return 0


def _apart(name: str, arguments: argparse.Namespace, left_s: float) -> Found:
    """One section in a process of its own, ended after the seconds that are left."""
    if left_s < LEAST_S:
        return {"error": "not begun: --limit is reached"}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "found.json"
        command = [sys.executable, __file__, "--within", "--only", name, "--out", str(out)]
        command += ["--models", str(arguments.models.resolve()), "--provider", arguments.provider]
        command += ["--seconds", str(arguments.seconds)]
        with (Path(scratch) / "printed").open("w+b") as printed:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
            process = subprocess.Popen(
                command, env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                status = process.wait(left_s)
                ended = {"error": f"ended with status {status}"} if status else {}
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # its server too
                process.wait()
                ended = {"error": f"no end within {left_s:.0f} s"}
            printed.seek(0)
            said = printed.read().decode(errors="replace")[-3000:]
        found: Found = json.loads(out.read_text()) if out.exists() else {}
    return {**found, **ended, **({"printed": said} if said else {})}


def failed(found: Found) -> bool:
    """Whether the section ended in an error, or what was looked at in it did."""
    return "error" in found or any(isinstance(value, dict) and "error" in value for value in found.values())


def lines(name: str, found: Found) -> Iterator[str]:
    """One line for each figure of a section; of a traceback its last line, the file has all of it."""
    for key, value in found.items():
        if isinstance(value, dict) and "error" in value:
            value = {**value, "error": value["error"].strip().splitlines()[-1]}
        text = value if isinstance(value, str) else json.dumps(value)
        yield f"{name:9} {key}: {text}"


if __name__ == "__main__":
    sys.exit(main())

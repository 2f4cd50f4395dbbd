"""The benchmark runs every phase against a real server and reports each measure; what it measures with is right."""

import asyncio
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benchmarks.graphs import BAD, LATENT_DIM, write_faulty, write_heavy
from benchmarks.overload import Client, Found, bucket_percentile, percentile, poisson
from service.package import verify_package

ROOT = Path(__file__).resolve().parents[2]
MEASURES = (
    "the generator's CPU-ms an image",
    "the plan",
    "capacity, images/s, before",
    "the server's CPU-ms an image, before",
    "cores of the server and of the load, before",
    "deadline of each request",
    "answers by status",
    "cores of the server and of the load, at three times",
    "accepted requests that kept their deadline",
    "rejections, p99",
    "/livez, p99",
    "/metrics, p99",
    "memory before, with the queue full, and after",
    "memory, growth with the queue full",
    "capacity, images/s, after",
    "the server's CPU-ms an image, after",
    "cores of the server and of the load, after",
    "goodput / capacity",
    "that came back, accepted",
    "Retry-After right within 25 % or 50 ms",
    "rows queued at most / served in a second",
    "event loop lag, p99",
    "clients that left, rows that ran",
    "of 8 in a batch with one poisoned, answered",
    "an endless run was ended",
    "and the next request was answered",
)


def test_every_phase_is_reported(tmp_path):
    out = tmp_path / "RESULTS.md"
    command = [sys.executable, "benchmarks/overload.py", "--seconds", "1.5", "--cpu-ms", "1", "--append", str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 4][2:]
    assert len(rows) == len(MEASURES)
    for (measure, value, goal, met), expected in zip(rows, MEASURES, strict=True):
        assert expected in measure and value and bool(goal) == bool(met)
    met = {row[0]: row[3] for row in rows}
    assert met["of 8 in a batch with one poisoned, answered"] == met["and the next request was answered"] == "yes"


@pytest.mark.parametrize("flag", ["--seconds", "--cpu-ms", "--timeout-ms"])
def test_a_number_that_makes_no_sense_is_refused(flag):
    ended = subprocess.run(
        [sys.executable, "benchmarks/overload.py", flag, "0"],
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 2 and flag.encode() in ended.stderr


def test_the_heavy_generator_is_a_model_and_as_heavy_as_asked(tmp_path):
    ref, cpu_ms = write_heavy(tmp_path, 2.0)
    assert ref == "heavy@1" and cpu_ms >= 2.0
    assert verify_package(tmp_path / "heavy" / "1").ref == ref


def test_the_faulty_generator_goes_wrong_in_the_bad_row_alone(tmp_path):
    write_faulty(tmp_path)
    folder = tmp_path / "faulty" / "1"
    session = onnxruntime.InferenceSession(folder / verify_package(folder).graphs["generator"].file)
    z = np.zeros((3, LATENT_DIM), np.float32)
    z[1, 0] = BAD - 1
    (score,) = session.run(["score"], {"z": z})
    assert np.isfinite(score[:, 0]).tolist() == [True, False, True]


def test_goals_are_held_against_values():
    found = Found()
    found.add("a", 0.95, ".2f", least=0.9)
    found.add("b", 51.0, ".0f", most=50, unit=" ms")
    found.add("c", math.nan, most=50)
    found.add("d", "some")
    assert [row[1:] for row in found.rows] == [
        ["0.95", "at least 0.9", "yes"],
        ["51 ms", "at most 50 ms", "NO"],
        ["nan", "at most 50", "NO"],
        ["some", "", ""],
    ]


def test_percentiles():
    assert percentile([0.001, 0.002, 0.003], 50) == pytest.approx(2.0) and math.isnan(percentile([], 50))
    before = {'x_bucket{le="0.1"}': 5.0, 'x_bucket{le="0.2"}': 5.0, 'x_bucket{le="+Inf"}': 5.0}
    after = {'x_bucket{le="0.1"}': 103.0, 'x_bucket{le="0.2"}': 105.0, 'x_bucket{le="+Inf"}': 105.0}
    assert bucket_percentile(before, after, "x_bucket", 0.98) == 0.1
    assert bucket_percentile(before, after, "x_bucket", 0.99) == 0.2
    assert math.isnan(bucket_percentile(after, after, "x_bucket", 0.99))


async def test_arrivals_are_as_many_as_the_rate_says_and_none_waits_for_another():
    dues, going = [], []

    async def send(due):
        dues.append(due)
        going.append(1)
        await asyncio.sleep(0.01)

    await poisson(1000, 0.1, send)
    assert len(dues) == 100 and dues == sorted(dues)


async def test_a_reply_tells_when_to_come_again():
    async def answer(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After-Ms: 250\r\nContent-Length: 2\r\n\r\n{}")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    client = Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "m")
    reply = await client.get("/")
    client.close()
    server.close()
    assert (reply.status, reply.retry_s, reply.body) == (429, 0.25, b"{}")

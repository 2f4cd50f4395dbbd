"""The benchmark of Ray Serve: what it hands to `serve run`, and its tables."""

import argparse
import http.server
import threading
from contextlib import contextmanager

import pytest

from benchmarks import cluster
from benchmarks.cluster import CASES, CLIENTS, Results, beside, configuration, everyone, gains, hops, report
from benchmarks.load import Period
from benchmarks.processes import NotReady


def results(ray_s: float) -> Results:
    """Plain servers answer in 10 ms and Ray in so many seconds; 100 images/s for each lane, of Ray half of them."""
    found = Results()
    for model in ("heavy", "small"):
        for clients in CLIENTS:
            for case in CASES:
                answered = 100 * case.replicas // (2 if case.ray else 1)
                period = Period(seconds=1.0, answered=answered, latencies_s=[ray_s if case.ray else 0.01] * answered)
                period.ends["200"] = answered
                period.server_cpu_s = answered * (0.003 if case.ray else 0.002)
                found.periods[model, clients, case.name] = period
    for case in CASES:
        found.rest_cores[case.name], found.memory_bytes[case.name] = [0.1, 0.3], 3 << 20
    return found


def test_every_ray_case_has_a_plain_one_beside_it():
    assert {case.replicas for case in CASES if case.ray} == {1, 2}
    for case in CASES:
        assert not beside(case).ray and beside(case).replicas == case.replicas
    assert not CASES[0].ray and CASES[0].replicas == 1


def test_the_hop_is_ray_less_plain():
    lines = list(hops(results(ray_s=0.0125).periods, ["heavy"]))
    assert len(lines) == sum(case.ray for case in CASES)
    for line in lines:
        assert line[3:] == ["10.00", "12.50", "2.50", "1.00"]


def test_gains_are_over_one_lane_and_over_as_many():
    lines = {line[1]: line[2:] for line in gains(results(ray_s=0.0125).periods, ["small"])}
    assert lines["plain, 2 lanes"] == ["2.00", "1.00"]
    assert lines["Ray, 1 replica"] == ["0.50", "0.50"]
    assert lines["Ray, 2 replicas"] == ["1.00", "0.50"]


def test_the_report_has_a_line_for_each():
    text = report(results(0.02), ["heavy", "small"], 15.2, argparse.Namespace(rounds=2, seconds=3.0))
    lines = [line for line in text.splitlines() if line.startswith("| heavy | 16 |")]
    assert [line.split(" | ")[2] for line in lines] == [case.name for case in CASES]
    assert "15.2 CPU-ms" in text and "| Ray, 2 replicas | 0.200 | 3 |" in text


def test_serve_is_told_replicas_port_and_address():
    told = configuration(CASES[-1], 4711)
    assert told["http_options"] == {"host": "127.0.0.1", "port": 4711}
    (app,) = told["applications"]
    assert app["args"] == {"min_replicas": 2, "max_replicas": 2}
    assert app["import_path"] == "deploy.ray_app:app"


@contextmanager
def scraped(*starts: bytes):
    """A server whose scrapes go to processes in turn; its port."""
    turns = iter(starts * 1000)

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"process_start_time_seconds " + next(turns) + b"\n")

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def test_nothing_is_measured_before_every_replica_answers(monkeypatch):
    monkeypatch.setattr(cluster, "LOOKS", 3)
    with scraped(b"1.5", b"2.5") as port:
        everyone(2, port)
    with scraped(b"1.5") as port, pytest.raises(NotReady, match="1 replicas answered, and not 2"):
        everyone(2, port)

"""The real command in a process of its own: start, answer, drain on SIGTERM; and `check`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
QUICK = ["--profile-s", "0", "--providers", "cpu", "--lanes", "1"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "service", *arguments]


@contextmanager
def served(models: Path, *flags: str):
    """A running server: its process, its address and the lines of its log."""
    line = command("serve", "--models", str(models), "--port", "0", *QUICK, *flags)
    process = subprocess.Popen(line, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ})
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)
    reader.start()
    try:
        address = wait_for(lambda: next((word for row in lines for word in row.split() if "http://" in word), None))
        address = address.strip('",')
        wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 200)
        yield process, address, lines
    finally:
        process.kill()
        process.wait()
        reader.join()


def wait_for(look, timeout_s: float = 60.0):
    """What `look` answers, once it answers something."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def test_serves_and_drains(tiny_models):
    with served(tiny_models, "--drain-delay-s", "300", "--log-format", "json") as (process, address, lines):
        reply = httpx.post(f"{address}/generate", json={"model": "tiny-rgb", "seed": 7})
        assert reply.status_code == 200 and reply.headers["x-seed"] == "7"
        assert httpx.post(f"{address}/models/tiny-rgb/load").status_code == 403
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        assert httpx.get(f"{address}/readyz").json()["state"] == "draining"
        late = httpx.post(
            f"{address}/generate", json={"model": "tiny-rgb", "seed": 7}
        )  # the balancer has not seen it yet
        assert (late.status_code, late.content) == (200, reply.content)
        process.send_signal(signal.SIGTERM)  # a second signal ends the delay
        assert process.wait(timeout=60) == 0
    assert all(line.startswith("{") for line in lines)
    assert not any("Traceback" in line for line in lines)


def test_accepted_requests_finish(tiny_models):
    """A request whose body is still arriving when the port closes is read to its end and answered."""
    with served(tiny_models, "--drain-delay-s", "0") as (process, address, _):
        begun, closed = threading.Event(), threading.Event()

        def body():
            yield b'{"model": "tiny-rgb",'
            begun.set()
            closed.wait(30)
            yield b' "seed": 3}'

        replies = []

        def post():
            headers = {"content-type": "application/json"}
            replies.append(httpx.post(f"{address}/generate", content=body(), headers=headers, timeout=60))

        thread = threading.Thread(target=post)
        thread.start()
        begun.wait(30)
        time.sleep(0.2)  # the first part is on its way; nothing on this side tells when it has arrived
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: refuses(address))
        closed.set()
        thread.join(60)
        assert [reply.status_code for reply in replies] == [200]
        assert process.wait(timeout=60) == 0


def test_what_is_not_finished_in_time_is_told_so(tiny_models):
    """A body that does not come: 503 when the time to drain is over, and the process ends soon after."""
    flags = ["--drain-delay-s", "0", "--drain-timeout-s", "1", "--log-format", "json"]
    with served(tiny_models, *flags) as (process, address, lines):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /translate HTTP/1.1\r\nhost: {host}\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\n"
            client.sendall(head.encode())
            time.sleep(0.2)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            told = b""
            while more := client.recv(65536):
                told += more
        assert process.wait(timeout=60) == 0
    assert told.startswith(b"HTTP/1.1 503 ") and b"application/problem+json" in told and b"draining" in told
    assert time.monotonic() - began >= 1.0
    assert not any("Traceback" in line for line in lines)


def test_what_is_no_setting_is_a_line_of_the_log(tiny_models, monkeypatch):
    monkeypatch.setenv("GANYMEDE_PROT", "1")
    with served(tiny_models, "--log-format", "json") as (_, _address, lines):
        told = [json.loads(line) for line in lines if "GANYMEDE_PROT" in line]
    assert told[0]["level"] == "warning" and "did you mean GANYMEDE_PORT?" in told[0]["message"]


def refuses(address: str) -> bool:
    try:
        httpx.get(f"{address}/livez")
    except httpx.TransportError:
        return True
    return False


def test_a_taken_port_is_an_error(tiny_models):
    with served(tiny_models) as (_, address, _lines):
        port = address.rsplit(":", 1)[1]
        line = command("serve", "--models", str(tiny_models), "--port", port, *QUICK)
        done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "address already in use" in done.stderr.lower()
        assert "Traceback" not in done.stderr


def test_check(tiny_models, tmp_path):
    done = subprocess.run(command("check", "--models", str(tiny_models)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split("\n")[:2] == ["ok       tiny-grey@1", "ok       tiny-rgb@1"]
    models = tmp_path / "models"
    shutil.copytree(tiny_models, models)
    (models / "tiny-rgb" / "1" / "golden.npz").unlink()
    done = subprocess.run(command("check", "--models", str(models)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "refused  tiny-rgb@1: " in done.stdout and "ok       tiny-grey@1" in done.stdout
    for name, value in (("GANYMEDE_MEMORY_BUDGET_BYTES", "1"), ("GANYMEDE_LOAD_ON_DEMAND", "true")):
        environment = {**os.environ, name: value}
        again = subprocess.run(
            command("check", "--models", str(models)), cwd=ROOT, capture_output=True, text=True, env=environment
        )
        assert again.stdout == done.stdout and again.returncode == 1, "every folder, whatever is kept in memory"
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        command("check", "--models", str(tmp_path / "empty")), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and "holds no model" in done.stderr


def test_a_server_with_keys(tiny_models, tmp_path):
    keys = tmp_path / "keys"
    made = subprocess.run(command("key", "alice", "--append", str(keys)), cwd=ROOT, capture_output=True, text=True)
    secret = made.stdout.strip()
    with served(tiny_models, "--keys-file", str(keys), "--log-level", "debug") as (_, url, lines):
        link = f"{url}/generate?model=tiny-rgb&seed=1"
        assert httpx.get(link).status_code == 401
        assert httpx.get(link, headers={"authorization": f"Bearer {secret}"}).status_code == 200
        assert httpx.get(link, headers={"x-api-key": secret + "x"}).status_code == 401
        keys.write_text("")
        deadline = time.monotonic() + 20
        while httpx.get(link, headers={"x-api-key": secret}).status_code == 200:
            assert time.monotonic() < deadline, "a key that was taken out is still known"
            time.sleep(0.2)
    text = "".join(lines)
    assert "caller=alice" in text and secret not in text and secret[5:20] not in text

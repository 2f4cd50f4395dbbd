"""What the repository says about itself is true: versions, pins, targets, paths, contracts."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import service

ROOT = Path(__file__).resolve().parents[1]
VIOLATIONS = [  # contract, who must not import, what
    ("service-layers", "service.manifest", "service.package"),
    ("engine-arithmetic", "service.engine.latents", "service.engine.pipelines"),
    ("settings-and-metrics", "service.engine.latents", "service.settings"),
    ("engine-walled-off", "service.engine.latents", "fastapi"),
    ("service-without-training", "service.manifest", "torch"),
    ("training-layers", "training.recipe", "training.family"),
    ("families-apart", "training.families.dcgan", "training.families.gan"),
    ("training-to-service", "training.recipe", "service.settings"),
]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def normal(requirement: str) -> str:
    """The distribution's name of a requirement or pin, in the spelling that makes equal names equal."""
    found = NAME.match(requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_version_is_the_same_everywhere() -> None:
    version = project()["project"]["version"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert service.__version__ == version
    assert compose["services"]["service"]["image"] == f"ganymede:{version}"


def test_every_direct_dependency_is_pinned_within_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line), f"not an exact public version: {line}"
            assert normal(line) not in pins, f"pinned twice: {line}"
            pins[normal(line)] = line
    metadata = project()["project"]
    extras = [need for needs in metadata["optional-dependencies"].values() for need in needs]
    missing = {normal(need) for need in [*metadata["dependencies"], *extras]} - set(pins)
    assert not missing


def test_service_dependencies_leave_torch_out() -> None:
    names = {normal(need) for need in project()["project"]["dependencies"]}
    assert names.isdisjoint({"torch", "onnx", "onnxscript", "scipy", "tensorboard", "tqdm"})


def test_no_tracked_text_names_a_path_of_somebodys_machine() -> None:
    homes = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt/c)/(?!me/|you/)[A-Za-z0-9_.-]+")
    found = []
    for path in tracked():
        data = path.read_bytes()
        if b"\0" not in data[:8192]:
            lines = data.decode("utf-8", "replace").splitlines()
            found += [
                f"{path.relative_to(ROOT)}:{n}: {m[0]}" for n, line in enumerate(lines, 1) for m in homes.finditer(line)
            ]
    assert not found


def test_every_make_target_in_the_docs_exists() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"]
    named = {
        (path.name, target)
        for path in pages
        for code in re.findall(r"`[^`\n]+`|^\$? ?make .*$", path.read_text(), re.MULTILINE)
        for target in re.findall(r"\bmake ([a-z][a-z-]*)", code)
    }
    assert named, "no page names a make target"
    assert {(page, target) for page, target in named if target not in targets()} == set()


def test_ci_runs_targets_that_exist() -> None:
    called = set(re.findall(r"^\s*make ([a-z-]+)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert {"check", "test", "test-docker"} <= called <= targets()


def test_containers_are_pinned_and_locked_down() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    for name, container in compose["services"].items():
        assert re.fullmatch(r"[\w./-]+:v?\d+(\.\d+)+", container["image"]), f"{name}: no exact version"
        assert container["read_only"] is True, name
        assert container["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in container["security_opt"], name
        published = container.get("ports", [])
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in published), f"{name}: open to the network"
        bounds = {"mem_limit", "cpus", "pids_limit", "healthcheck", "stop_grace_period"}
        assert bounds <= container.keys(), f"{name}: {bounds - container.keys()}"
    bases = re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert len(bases) >= 2
    assert all(":" in base and not base.endswith(":latest") for base in bases)


def test_images_that_are_stood_in_for_are_the_composed_ones() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    used = {container["image"] for name, container in compose["services"].items() if name not in ("service", "replica")}
    used |= set(re.findall(r"^FROM (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE))
    told = re.findall(r"^\w+_image=(\S+)", (ROOT / "tests/docker/base-images").read_text(), re.MULTILINE)
    assert set(told) == used


def test_the_gpu_override_builds_another_image_from_the_same_dockerfile() -> None:
    base, over = (yaml.safe_load((ROOT / f"docker-compose{kind}.yml").read_text())["services"] for kind in ("", ".gpu"))
    assert over.keys() <= base.keys()
    assert all(container["image"] == f"{base['service']['image']}-cuda" for container in over.values())
    (argument,) = over["service"]["build"]["args"]
    assert f"ARG {argument}=" in (ROOT / "Dockerfile").read_text() and argument in base["service"]["build"]["args"]


def test_container_is_given_time_to_drain() -> None:
    container = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["service"]
    environment = container["environment"]
    drain_s = float(environment["GANYMEDE_DRAIN_DELAY_S"]) + float(environment["GANYMEDE_DRAIN_TIMEOUT_S"])
    assert float(container["stop_grace_period"].removesuffix("s")) > drain_s


def test_compose_sets_only_settings_that_exist() -> None:
    from service.settings import PREFIX, Settings

    container = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["service"]
    fields = {name.removeprefix(PREFIX).lower() for name in container["environment"]}
    fields |= {name.lower() for name in re.findall(rf"\b{PREFIX}(\w+)=", (ROOT / "Dockerfile").read_text())}
    assert fields <= set(Settings.model_fields)


@pytest.mark.parametrize(("asked", "found"), [(None, "1"), ("0", "0")])
def test_importing_the_service_turns_telemetry_off_unless_it_was_asked_for(asked: str | None, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    if asked is not None:
        environment["ORT_DISABLE_TELEMETRY"] = asked
    code = "import service, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found


@pytest.mark.parametrize(("contract", "importer", "imported"), VIOLATIONS)
def test_import_contract_catches_a_violation(tmp_path: Path, contract: str, importer: str, imported: str) -> None:
    for part in ("service", "training"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / f"{importer.replace('.', '/')}.py").open("a") as source:
        source.write(f"\nimport {imported}\n")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    linter = [sys.executable, "-c", code, "--no-cache", "--contract", contract]
    done = subprocess.run(linter, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{importer} -> {imported} (l." in done.stdout


def test_every_import_contract_has_a_violation_to_catch() -> None:
    contracts = {contract["id"] for contract in project()["tool"]["importlinter"]["contracts"]}
    assert contracts == {contract for contract, _, _ in VIOLATIONS}


def test_every_series_in_the_operations_page_exists() -> None:
    asked = set(re.findall(r"\bganymede_[a-z_]+\b", (ROOT / "docs/operations.md").read_text()))
    asked -= {name for name in asked if name.startswith(("ganymede_service", "ganymede_prometheus"))}  # containers
    written = set(re.findall(r'"(ganymede_[a-z_]+)"', (ROOT / "service/metrics.py").read_text()))
    assert asked
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} <= written


def test_every_page_that_a_page_names_exists() -> None:
    named = {
        (path.name, page)
        for path in tracked()
        if path.suffix == ".md"
        for page in re.findall(r"(?<![\w/.])docs/[\w./-]+\.md\b", path.read_text())
    }
    assert named
    assert {(source, page) for source, page in named if not (ROOT / page).is_file()} == set()


@pytest.mark.parametrize(
    ("answer", "audited"),
    [
        ("import sys; sys.exit('requests.exceptions.ConnectionError: Traceback')", False),
        ('print(\'{"dependencies": [{"name": "pillow", "skip_reason": "not found"}], "fixes": []}\')', False),
        ('print(\'{"dependencies": [{"name": "pillow", "version": "9.0.0", "vulns": []}]}\')', False),
        ('print(\'{"dependencies": [{"name": "pillow", "vulns": [{"id": "PYSEC-2022-8"}]}]}\')', True),
    ],
)
def test_an_audit_without_its_database_says_so_in_a_sentence(tmp_path: Path, answer: str, audited: bool) -> None:
    """A stand-in for pip-audit gives this answer to the release that has known vulnerabilities."""
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin" / "pip-audit"
    asked = "import sys\nif 'constraints.txt' in sys.argv: print('AUDITED', *sys.argv); sys.exit()\n"
    tool.write_text(f"#!{sys.executable}\n{asked}assert sys.stdin.read() == 'pillow==9.0.0\\n'\n{answer}\n")
    tool.chmod(0o755)
    command = ["make", "--no-print-directory", "audit", f"VENV={tmp_path}", "-o", f"{tmp_path}/.dev"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ("AUDITED" in done.stdout, done.returncode == 0) == (audited, audited)
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert [line[:20] for line in said] == ([] if audited else ["Nothing was audited:"])

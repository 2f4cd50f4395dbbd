"""Where settings come from, and what is wrong with wrong ones."""

import pytest
from pydantic import ValidationError

from service.__main__ import main
from service.settings import Settings, unknown_variables


def test_environment_and_flags(monkeypatch):
    monkeypatch.setenv("GANYMEDE_PORT", "9000")
    monkeypatch.setenv("GANYMEDE_PROVIDERS", "cuda, cpu")
    monkeypatch.setenv("GANYMEDE_LANES", "")
    monkeypatch.setenv("GANYMEDE_POLL_MODELS_S", "none")
    monkeypatch.setenv("GANYMEDE_ADMIN", "true")
    settings = Settings()
    assert (settings.port, settings.providers, settings.lanes) == (9000, ("cuda", "cpu"), None)
    assert settings.poll_models_s is None and settings.admin
    assert Settings(port=1).port == 1


@pytest.mark.parametrize(
    "name, value",
    [
        ("port", 70000),
        ("port", "x"),
        ("max_images", 0),
        ("timeout_s", 0),
        ("timeout_s", "nan"),
        ("providers", ""),
        ("providers", "cpu,gpu"),
        ("keys_file", ""),
        ("keys_file", " "),
        ("log_format", "xml"),
        ("jpeg_quality", 96),
        ("max_body_bytes", 1),
    ],
)
def test_wrong_values(name, value):
    with pytest.raises(ValidationError) as caught:
        Settings(**{name: value})
    assert caught.value.errors()[0]["loc"][0] == name


def test_unknown_names():
    with pytest.raises(ValidationError):
        Settings(prot=1)


def test_misspelt_variables_are_found(monkeypatch):
    monkeypatch.setenv("GANYMEDE_PROT", "1")
    monkeypatch.setenv("GANYMEDE_ZZZ", "1")
    monkeypatch.setenv("GANYMEDE_PORT", "1")
    found = unknown_variables()
    assert found["GANYMEDE_PROT"] == "GANYMEDE_PORT" and found["GANYMEDE_ZZZ"] is None and "GANYMEDE_PORT" not in found


def test_the_command_line_names_the_wrong_flag(capsys, monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--models", str(tmp_path), "--port", "x"])
    assert ended.value.code == 2 and "--port" in capsys.readouterr().err
    monkeypatch.setenv("GANYMEDE_MAX_IMAGES", "0")
    with pytest.raises(SystemExit):
        main(["serve", "--models", str(tmp_path)])
    assert "GANYMEDE_MAX_IMAGES" in capsys.readouterr().err


def test_a_missing_folder_is_said_at_once(capsys, tmp_path):
    assert main(["serve", "--models", str(tmp_path / "none")]) == 2
    assert "is not a folder" in capsys.readouterr().err

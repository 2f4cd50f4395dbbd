"""Keys: made, kept as hashes, found, read again; and what is wrong with wrong lists."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service import keys
from service.__main__ import main
from service.keys import Key, Keyring, KeysWrong, append_key, digest_of, new_secret, read_keys

ROOT = Path(__file__).parents[2]


def key(name="alice", secret="s", **changes):
    return Key(name, digest_of(secret.encode()), **changes)


def test_a_line_says_what_a_key_is():
    full = key(scopes=frozenset({"generate", "admin"}), rate_per_s=2.5, burst=40.0, share=3.0)
    assert full.line.split()[2:] == ["admin,generate", "rate=2.5", "burst=40", "share=3"]
    text = f"# comment\n\n{full.line}  # alice's; {key('bob', 't').line}\n"
    assert read_keys(text.replace("; ", "\n"), "x") == [full, key("bob", "t")]
    assert read_keys(f"{full.line};{key('bob', 't').line}", "x") == [full, key("bob", "t")]


HASH = f"sha256:{digest_of(b's').hex()}"


@pytest.mark.parametrize(
    "line, says",
    [
        ("alice", "name and sha256"),
        ("gany_secret", "name and sha256"),
        (f"{HASH} alice", "name and sha256"),
        (f"alice {HASH[:-1]}", "name and sha256"),
        (f"al/ice {HASH}", "name and sha256"),
        (f"alice {HASH} root", "scopes are"),
        (f"alice {HASH} generate,", "scopes are"),
        (f"alice {HASH} generate rate=0", "rate must be"),
        (f"alice {HASH} generate rate=nan", "rate must be"),
        (f"alice {HASH} generate share=-1", "share must be"),
        (f"alice {HASH} generate size=1", "rate, burst, share"),
        (f"alice {HASH}\nalice sha256:{'0' * 64}", "same name"),
        (f"alice {HASH}\nbob {HASH}", "same hash"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_never_shown(line, says):
    with pytest.raises(KeysWrong, match=says) as caught:
        read_keys(f"# first\n{line}", "the file")
    assert "the file" in str(caught.value)
    for word in ("gany_secret", HASH[7:20]):
        assert word not in str(caught.value)


def test_only_the_whole_key_is_found():
    secrets = [new_secret() for _ in range(50)]
    ring = Keyring([key(f"k{number}", secret) for number, secret in enumerate(secrets)])
    assert len(set(secrets)) == 50 and all(len(secret) >= 48 and secret.startswith(keys.PREFIX) for secret in secrets)
    assert [ring.find(secret.encode()).name for secret in secrets] == [f"k{number}" for number in range(50)]
    for wrong in (b"", secrets[0][:-1].encode(), secrets[0].encode() + b"x", digest_of(secrets[0].encode())):
        assert ring.find(wrong) is None


def test_keys_whose_hashes_begin_alike_are_told_apart(monkeypatch):
    monkeypatch.setattr(keys, "digest_of", lambda secret: b"same" + secret.ljust(28, b"."))
    ring = Keyring([Key(name, keys.digest_of(name.encode())) for name in ("a", "b")])
    assert (ring.find(b"a").name, ring.find(b"b").name, ring.find(b"c")) == ("a", "b", None)


def test_the_whole_hash_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(keys.hmac, "compare_digest", lambda a, b: compared.append((a, b)) or a == b)
    Keyring([key()]).find(b"s")
    assert compared == [(digest_of(b"s"), digest_of(b"s"))]


def test_a_file_is_read_again_when_it_changes(tmp_path):
    path = tmp_path / "keys"
    path.write_text(key().line)
    ring = Keyring([key("ops", "o")], path)
    assert len(ring) == 2 and not ring.refresh()
    append_key(path, key("bob", "b"))
    assert ring.refresh() and ring.find(b"b").name == "bob" and ring.find(b"s").name == "alice"
    path.write_text("rubbish here")
    with pytest.raises(KeysWrong, match="line 1"):
        ring.refresh()
    assert ring.find(b"b").name == "bob", "what was known stays"
    assert not ring.refresh(), "said once"
    path.write_bytes(bytes(range(128, 228)))
    with pytest.raises(KeysWrong, match="not a text in UTF-8"):
        ring.refresh()
    assert ring.find(b"b").name == "bob"
    with pytest.raises(KeysWrong, match="not a text"):
        append_key(path, key("bob", "b"))
    path.write_text(key("ops", "x").line)
    with pytest.raises(KeysWrong, match="same name"):
        ring.refresh()
    path.write_text("")
    assert ring.refresh() and ring.find(b"b") is None and ring.find(b"o").name == "ops"


def test_the_command_makes_a_key_and_shows_it_once(tmp_path):
    path = tmp_path / "keys"
    command = [sys.executable, "-m", "service", "key", "alice", "--scopes", "generate,admin", "--rate", "5"]
    made = subprocess.run([*command, "--append", str(path)], cwd=ROOT, capture_output=True, text=True, check=True)
    secret = made.stdout.strip()
    (kept,) = read_keys(path.read_text(), "x")
    assert kept.digest == digest_of(secret.encode()) and kept.rate_per_s == 5 and kept.scopes == {"generate", "admin"}
    assert secret not in path.read_text() + made.stderr and kept.line in made.stderr
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = subprocess.run([*command, "--append", str(path)], cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 2 and "already" in again.stderr and again.stdout == ""


@pytest.mark.parametrize("arguments", [["a b"], ["alice", "--scopes", "root"], ["alice", "--share", "0"]])
def test_the_command_names_what_is_wrong(arguments, capsys):
    assert main(["key", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err


def test_a_server_with_a_wrong_list_does_not_start_and_shows_nothing_of_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GANYMEDE_KEYS", "gany_a-key-in-the-wrong-place")
    assert main(["serve", "--models", str(tmp_path)]) == 2
    assert "GANYMEDE_KEYS, line 1" in (said := capsys.readouterr().err) and "gany_" not in said
    monkeypatch.delenv("GANYMEDE_KEYS")
    assert main(["serve", "--models", str(tmp_path), "--keys-file", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err

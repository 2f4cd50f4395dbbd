"""The command line: `python -m service serve | check | bench | key`."""

import argparse
import asyncio
import gc
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from service.bench import add_arguments, plan_of, run_bench
from service.keys import SCOPES, Keyring, KeysWrong, append_key, digest_of, new_secret, read_keys
from service.settings import PREFIX, Settings, unknown_variables


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status: 0 done, 1 failed, 2 wrong arguments."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "bench":
        return run_bench(plan_of(arguments), as_json=arguments.json)
    if arguments.command == "key":
        return _key(arguments)
    settings = _settings(arguments)
    if not settings.models.is_dir():
        return _wrong(f"models: {settings.models} is not a folder; it must hold <name>/<version>/ of each model")
    unknown = [
        f"{name} is no setting{f'; did you mean {near}?' if near else ''}" for name, near in unknown_variables().items()
    ]
    if arguments.command == "check":
        print(*unknown, sep="\n", end="\n" if unknown else "", file=sys.stderr)
        return asyncio.run(_check(settings))
    try:
        read_keys("" if settings.keys is None else settings.keys.get_secret_value(), f"{PREFIX}KEYS")
        Keyring((), settings.keys_file)
    except (KeysWrong, OSError) as error:
        return _wrong(str(error))
    return _serve(settings, unknown)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve exported GANs over HTTP.")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser(
        "serve", help="serve a models' folder", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    check = commands.add_parser("check", help="verify every model folder as the server would")
    bench = commands.add_parser("bench", help="send load to a running server and report throughput and latency")
    add_arguments(bench)
    key = commands.add_parser("key", help="make an API key; prints the key and the line that the server needs")
    key.add_argument("name", help="whose it is; appears in logs")
    key.add_argument("--scopes", default="generate", help=f"parted by a comma: {', '.join(SCOPES)}")
    key.add_argument("--rate", metavar="PER_S", help="requests a second; the server's rate_per_s by default")
    key.add_argument("--burst", help="requests at once; the server's rate_burst by default")
    key.add_argument("--share", help="weight in the queue against others' 1, where the server is `fair`")
    key.add_argument("--append", type=Path, metavar="FILE", help="add the line to this file, the server's keys_file")
    for name, field in Settings.model_fields.items():
        flag, text = f"--{name.replace('_', '-')}", (field.description or "").replace("%", "%%")
        if field.annotation is bool:
            serve.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            serve.add_argument(flag, default=argparse.SUPPRESS, metavar=name.upper(), help=text)
    check.add_argument("--models", type=Path, default=argparse.SUPPRESS, help="folder of <name>/<version>/")
    check.add_argument("--providers", default=argparse.SUPPRESS, help="as for serve")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    """Flags over environment over defaults."""
    flags = {name: value for name, value in vars(arguments).items() if name in Settings.model_fields}
    try:
        return Settings(**flags)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = str(item["loc"][0])
            source = f"--{name.replace('_', '-')}" if name in flags else f"{PREFIX}{name.upper()}"
            given = "" if name == "keys" else f", not {item['input']!r}"  # somebody may have put a key itself there
            print(f"{source}: {item['msg']}{given}", file=sys.stderr)
        raise SystemExit(2) from None


def _key(arguments: argparse.Namespace) -> int:
    """Make a key: the key itself goes to standard output and nowhere else."""
    secret = new_secret()
    limits = [f"{name}={value}" for name in ("rate", "burst", "share") if (value := getattr(arguments, name))]
    line = " ".join([arguments.name, f"sha256:{digest_of(secret.encode()).hex()}", arguments.scopes, *limits])
    try:
        (key,) = read_keys(line, "key")
        if arguments.append:
            append_key(arguments.append, key)
    except (ValueError, OSError) as error:
        return _wrong(str(error))
    print(secret)
    place = f"added to {arguments.append}" if arguments.append else "for the server's keys_file, or GANYMEDE_KEYS"
    print(f"The key is shown this once: {key.name} sends it as `Authorization: Bearer ...`.", file=sys.stderr)
    print(f"Its line, {place}:\n{key.line}", file=sys.stderr)
    return 0


def _serve(settings: Settings, unknown: Sequence[str]) -> int:
    gc.disable()  # until the models are in: what a start makes stays, and looking at it again and again takes time
    from service.api.server import serve  # here: `--help` and a wrong flag need no web framework

    status = serve(settings, unknown)
    if any(thread.daemon for thread in threading.enumerate()):
        # A model that is being loaded still, or a lane that was given up: were Python taken down under the native code
        # that such a thread runs, the process would abort, and with another status.
        logging.shutdown()
        os._exit(status)
    return status


async def _check(settings: Settings) -> int:
    """Open the models with the engine itself, so that check and serve cannot disagree."""
    from service.api.app import engine_of

    logging.basicConfig(level=logging.ERROR)
    every = {"versions_kept": 100, "load_on_demand": False, "memory_budget_bytes": None}
    engine = engine_of(settings.model_copy(update={"poll_models_s": None, "profile_s": 0.0, **every}))
    await engine.open()
    try:
        loaded = sorted(model.manifest.ref for model in engine.models())
        for ref in loaded:
            print(f"ok       {ref}")
        for folder, reason in sorted(engine.refused.items()):
            print(f"refused  {folder}: {reason.removeprefix(f'{folder}: ')}")
        if not loaded and not engine.refused:
            print(f"{settings.models} holds no model", file=sys.stderr)
        return 0 if loaded and not engine.refused else 1
    finally:
        await engine.close()


def _wrong(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

"""Command line of the training half: `python -m training COMMAND`, such as `data`, `train`, `evaluate`, `export`."""

import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "data": "fetch and prepare a named public set, or check your own images",
    "train": "train a family on a data set",
    "recolour": "fit the colours of a trained palette to the data, as a run of its own",
    "encoder": "learn an encoder beside a StyleGAN run, which projects pictures",
    "evaluate": "judge a run, or an exported model, on held-out images, beside its bounds",
    "export": "write a run's generator into the models' folder, where a server picks it up",
    "directions": "name directions of an exported model for attributes of real images",
    "rewrite": "write an exported model anew so that drawing takes less computation: the same pictures",
    "project": "find the latent that draws a picture, refined by gradient",
    "families": "list families, recipes and objectives",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m training COMMAND [-h] ...\n")
        print("\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items()))
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"python -m training: {name!r} is none of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return _command(name)(rest)
    except KeyboardInterrupt:
        print(f"python -m training {name}: interrupted", file=sys.stderr)
        return 130


def _command(name: str) -> Callable[[Sequence[str]], int]:
    # Imported when asked for: `data` and `--help` should not wait for torch.
    if name == "data":
        from training.datasets import command

        return command.main
    from training import commands

    run: Callable[[Sequence[str]], int] = getattr(commands, name)
    return run


if __name__ == "__main__":
    sys.exit(main())

"""The command line: a file per verb, imported only when its verb is called."""

import sys
from importlib import import_module

VERBS = {
    "demo": "train on real handwritten digits and open a page that shows what was learned",
    "train": "train a recipe, or continue an interrupted run",
    "compare": "see DaViT beside other architectures: cost here, accuracy in print",
    "plan": "find what fits on this machine, and what training would cost",
    "runs": "compare runs in one table and plot",
    "evaluate": "score a checkpoint on labelled images",
    "predict": "name what is in images",
    "embed": "make a vector for each image or text",
    "search": "find what is most like a text or a picture among vectors",
    "data": "check, show or shard images",
    "benchmark": "measure how fast data is loaded and models compute",
    "convert": "turn a checkpoint into another format",
    "export": "turn a checkpoint into a file that other engines run, and prove that it computes the same",
    "models": "list models and public weights",
}


def main(arguments: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0 done, 1 failed in part, 2 wrong usage or input."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from davit import __version__

        print(f"davit {__version__}")
        return 0
    verb, *rest = arguments
    try:
        if verb not in VERBS:
            from davit.naming import unknown_name

            raise unknown_name("command", verb, VERBS)
        return import_module(f"davit.cli.{verb}").main(rest)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            return 1
        print(f"davit {verb}: error: {_plain(error)}", file=sys.stderr)
        return 1 if isinstance(error, ConnectionError) else 2
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        print(f"davit {verb}: error: a loader process died or hung ({str(error).splitlines()[0]})", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"davit {verb}: interrupted", file=sys.stderr)
        return 130


def _plain(error: Exception) -> str:
    """What went wrong, without the traceback that a loader's process wraps around it."""
    text = str(error)
    return text.rstrip().splitlines()[-1].partition(": ")[2] if "Original Traceback" in text else text


def _help() -> str:
    lines = ["usage: davit VERB [options]", "", "Dual Attention Vision Transformers.", "", "verbs:"]
    lines += [f"  {verb:<10} {text}" for verb, text in VERBS.items()]
    return "\n".join([*lines, "", "davit VERB --help tells more; davit --version the version."])

"""`davit data`: look at data, check it, and write it into shards; a file for each of its verbs."""

from importlib import import_module

VERBS = {
    "check": "what would spoil training or scores: bad files, classes that differ, duplicates",
    "show": "a contact sheet of what the model will see after augmentation",
    "shard": "write class folders into tar files that train like the folders",
    "index": "make WebDataset tar files of others readable",
}


def main(arguments: list[str]) -> int:
    """Run one verb of this verb."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = ["usage: davit data VERB [options]", "", "Data before it is trained on.", "", "verbs:"]
        lines += [f"  {verb:<6} {text}" for verb, text in VERBS.items()]
        print("\n".join([*lines, "", "davit data VERB --help tells more."]))
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb not in VERBS:
        from davit.naming import unknown_name

        raise unknown_name("verb of data", verb, VERBS)
    return import_module(f"davit.cli.data_{verb}").main(rest)

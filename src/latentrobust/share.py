"""Share what a run has left: ``python -m latentrobust.share card|push|export RUN …``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from latentrobust.perturbation_sets.store import load_perturbation_set
from latentrobust.perturbation_sets.stored import read_folder
from latentrobust.sharing.card import stored_in, write_shareable
from latentrobust.sharing.exporting import export
from latentrobust.sharing.hub import push_run
from latentrobust.streams import speaking_as
from latentrobust.tasks.store import load_model


def _card(chosen: argparse.Namespace) -> None:
    folder = write_shareable(stored_in(chosen.run, chosen.model), chosen.to, chosen.licence)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")


def _push(chosen: argparse.Namespace) -> None:
    name = push_run(chosen.run, chosen.to, licence=chosen.licence, model=chosen.model, private=not chosen.public)
    print(f"load it with {name}")


def _export(chosen: argparse.Namespace) -> None:
    found = stored_in(chosen.run, chosen.model)
    if found.kind == "perturbation_set":
        difference = export(load_perturbation_set(found.folder), chosen.to)
    else:
        shape = read_folder(found.folder, "model")[0]["image_shape"]
        difference = export(load_model(found.folder), chosen.to, image_shape=shape)
    print(f"{chosen.to}: answers as the original does, to within {difference:.2g}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 when done, 2 for bad input (one line on standard error)."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.share", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, run, what, to in (
        ("card", _card, "write a folder that others can load and read: weights, card, metrics, picture", "new folder"),
        ("push", _push, "upload the same to the Hugging Face hub", "OWNER/NAME"),
        ("export", _export, "write the set's generator or the model as a program", "file, .pt2 or .onnx"),
    ):
        command = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".")
        command.add_argument("run", type=Path, help="folder of a finished run")
        command.add_argument("to", help=to)
        command.add_argument("--model", help="name of a model; without it the run's set, or its only model")
        if name != "export":
            command.add_argument("--licence", required=True, help="of the data, such as cc-by-4.0, or a sentence")
        if name == "push":
            command.add_argument("--public", action="store_true", help="a new repository is for everybody to see")
        command.set_defaults(do=run)
    with speaking_as("share"):
        chosen = parser.parse_args(arguments)
        chosen.do(chosen)


if __name__ == "__main__":
    main()

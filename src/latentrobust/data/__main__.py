"""Commands on data, ``python -m latentrobust.data …``.

inspect looks at own pairs, corrupt writes corruptions, fetch gets multi-illumination.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from latentrobust.data.corruptions.files import Plan, checked, write_corrupted
from latentrobust.data.images import Images, cifar10, cifar100, photos, svhn
from latentrobust.data.lights.fetching import URL, fetch_scenes
from latentrobust.data.lights.multi_illumination import scene_names
from latentrobust.data.pairs.inspection import inspect, may_be_replaced, picture
from latentrobust.data.pairs.layouts import LabelFrom, Layout
from latentrobust.data.pairs.packing import Colour, Fit
from latentrobust.data.pairs.reading import MOST_PIXELS, Incomplete
from latentrobust.errors import InputError
from latentrobust.streams import speaking_as
from latentrobust.transforms.corruptions import CORRUPTIONS, HELD_OUT, TRAINING, textures

MOST_GREY = 255
PICTURE = Path("pairs.png")
SOURCES: dict[str, Callable[[str], Images]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "photos": lambda root: photos(),
}
KINDS = {"training": TRAINING, "held_out": HELD_OUT, "all": tuple(CORRUPTIONS)}


def corrupt(arguments: argparse.Namespace) -> None:
    """Write the files that are not there yet, and say what was done.

    Raises:
        InputError: for data, corruptions or a folder that do not fit.
    """
    kinds = tuple(name for kind in arguments.kinds for name in KINDS.get(kind, (kind,)))
    plan = Plan(
        arguments.split,
        tuple(dict.fromkeys(kinds)),
        tuple(dict.fromkeys(arguments.severities)),
        arguments.layout,
        arguments.seed,
    )
    textures.folder()  # before anything is read or downloaded
    for kind in plan.kinds:
        for severity in plan.severities:
            checked(kind, severity)
    images = SOURCES[arguments.data](str(_root(arguments)))
    written = write_corrupted(images.train if plan.split == "train" else images.test, plan, arguments.folder)
    print(f"{arguments.folder}: {len(plan.files())} files, {len(written)} written, the others verified")


def fetch(arguments: argparse.Namespace) -> None:
    """Fetch scenes of multi-illumination into the data root, and say how many.

    Raises:
        InputError: for what cannot be downloaded.
    """
    names = arguments.scenes or scene_names()
    folder = _root(arguments) / "multi_illumination"
    fetched = fetch_scenes(names, arguments.level, folder, not arguments.without_materials, arguments.url)
    print(f"{folder}: {len(fetched)} scenes fetched, {len(names) - len(fetched)} were there")


def look(arguments: argparse.Namespace) -> None:
    """Say what there is in own pairs, and draw some of them.

    Raises:
        InputError: if there is nothing to look at, or a run with the same options would be refused.
    """
    drawn = arguments.picture or PICTURE
    if arguments.picture is None and not may_be_replaced(drawn):
        raise InputError(f"{drawn} exists and is no picture of this command: name another one with --picture FILE")
    found = inspect(
        arguments.root, arguments.layout, arguments.size, arguments.fit, arguments.colour, arguments.background,
        arguments.original, arguments.label, arguments.cache, arguments.validation, arguments.test,
    )  # fmt: skip
    for line in found.lines:
        print(line)
    if found.problems:
        count = "a problem" if len(found.problems) == 1 else f"{len(found.problems):,} problems"
        skips = arguments.incomplete == "skip"
        print(f"{count}; {'left out is' if skips else 'data.incomplete=skip leaves out'} what is concerned:")
        for problem in found.problems:
            print(f"  {problem}")
    if found.pairs is not None:
        picture(found.pairs, drawn)
        print(f"{drawn}: some of the pairs, first halves above second halves")
    if found.problems and arguments.incomplete == "error":
        many = "problem" if len(found.problems) == 1 else "problems"
        raise InputError(f"{arguments.root}: {len(found.problems):,} {many}, listed above")
    if found.refused:
        raise InputError(f"{arguments.root}: a run would not start: {'; '.join(found.refused)}")


def _root(arguments: argparse.Namespace) -> Path:
    return Path(arguments.data_dir or os.environ.get("LATENTROBUST_DATA", "data_root"))


def _side(text: str) -> int:
    side = int(text)
    if not 1 <= side <= MOST_PIXELS:
        raise argparse.ArgumentTypeError(f"height and width are from 1 to {MOST_PIXELS}, got {side}")
    return side


def _level(text: str) -> int:
    level = int(text)
    if not 0 <= level <= MOST_GREY:
        raise argparse.ArgumentTypeError(f"must be from 0 to {MOST_GREY}, got {text}")
    return level


def _share(text: str) -> int | float:
    """A number of groups, or a share of them."""
    value = int(text) if text.isdecimal() else float(text)
    if value <= 0 or (isinstance(value, float) and value >= 1):
        raise argparse.ArgumentTypeError(f"must be a number of groups or a share between 0 and 1, got {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0 when done, 2 for bad input (one line on standard error), 130 when interrupted."""
    parser = argparse.ArgumentParser(prog="python -m latentrobust.data", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser(
        "corrupt",
        help="write corrupted images",
        description="Write the common corruptions of a data set as uint8 .npy files. An interrupted command goes on"
        " when it is repeated; what was written is verified. Read them with data=cifar10c data.corrupted=FOLDER"
        " (training), or place the archive layout of the test split in the data root as cifar10c/CIFAR-10-C.",
    )
    command.add_argument("folder", type=Path, help="to write to")
    command.add_argument("--data", choices=SOURCES, default="cifar10", help="images to corrupt (default: %(default)s)")
    command.add_argument("--split", choices=("train", "test"), default="train", help="default: %(default)s")
    command.add_argument(
        "--kinds", nargs="+", default=["training"], metavar="NAME",
        help=f"training (twelve, the default), held_out (three), all, or names: {', '.join(CORRUPTIONS)}",
    )  # fmt: skip
    command.add_argument("--severities", nargs="+", type=int, default=[5], metavar="1..5", help="default: 5")
    command.add_argument(
        "--layout", choices=("files", "archive"), default="files",
        help="files: NAME_SEVERITY.npy; archive: NAME.npy, severities one after another (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--seed", type=int, default=0, help="of random kinds, as data.split_seed (default: 0)")
    command.add_argument("--data-dir", help="data root; default: LATENTROBUST_DATA, or data_root")
    command.set_defaults(run=corrupt)
    command = commands.add_parser(
        "fetch",
        help="fetch multi-illumination",
        description="Fetch scenes of multi-illumination (images under 25 lights and maps of materials), several at"
        " once. An interrupted command goes on when it is repeated. Read them with data=multi_illumination.",
    )
    command.add_argument("--level", type=int, default=5, help="MIP level (default: 5, images of 125×187)")
    command.add_argument("--scenes", nargs="+", metavar="NAME", help="default: all 1,015")
    command.add_argument("--without-materials", action="store_true", help="images alone")
    command.add_argument("--url", default=URL, help="of the server (default: %(default)s)")
    command.add_argument("--data-dir", help="data root; default: LATENTROBUST_DATA, or data_root")
    command.set_defaults(run=fetch)
    command = commands.add_parser(
        "inspect",
        help="look at own pairs",
        description="Say what there is in a folder of groups, in parallel folders clean/ and perturbed/, in a manifest"
        " (.csv) or in arrays (.npz): counts, sizes, kinds, labels, splits, and everything that is wrong; and draw some"
        " pairs. Learn from them with data=pairs data.root=ROOT and options of the same names.",
    )
    command.add_argument("root", type=Path, help="folder, .csv or .npz")
    command.add_argument("--layout", choices=get_args(Layout), default="auto", help="default: %(default)s")
    command.add_argument("--size", type=_side, nargs=2, metavar=("HEIGHT", "WIDTH"), help="that all images get")
    command.add_argument("--fit", choices=get_args(Fit), default="resize", help="default: %(default)s")
    command.add_argument("--colour", choices=get_args(Colour), default="auto", help="default: %(default)s")
    command.add_argument(
        "--background", type=_level, default=255, metavar="0..255",
        help="grey level under transparent pixels and around padded images (default: %(default)s)",
    )  # fmt: skip
    command.add_argument("--original", help="in groups: the variant on which pairs are centred")
    command.add_argument("--label", choices=get_args(LabelFrom), help="where classes come from")
    command.add_argument(
        "--incomplete", choices=get_args(Incomplete), default="error",
        help="skip: exit with 0 although something is wrong, as a run would that leaves it out (default: %(default)s)",
    )  # fmt: skip
    for split, share in (("validation", 0.1), ("test", 0.2)):
        command.add_argument(
            f"--{split}", type=_share, default=share, metavar="GROUPS",
            help=f"groups of the {split} split, a number or a share of all (default: %(default)s)",
        )  # fmt: skip
    command.add_argument("--cache", help="folder for packed images; default: LATENTROBUST_CACHE, or the user's")
    command.add_argument("--picture", type=Path, help=f"to write, replacing what is there (default: {PICTURE})")
    command.set_defaults(run=look)
    with speaking_as("data", "; repeat the command to go on"):
        chosen = parser.parse_args(arguments)
        chosen.run(chosen)


if __name__ == "__main__":
    main()

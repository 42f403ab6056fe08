"""Small changes of the code that some test should notice: which ones none does."""

from __future__ import annotations

import ast
import copy
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from .promises import Outcome

ROOMS = ("robustness", "perturbation_sets")
SWAPS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


def places(tree):
    """Numbers of the nodes that can be changed."""
    return [number for number, node in enumerate(ast.walk(tree)) if _changed(copy.deepcopy(node)) is not None]


def _changed(node):  # noqa: PLR0911 - a kind of node a line
    """The node, changed, and what was done; None for one that is left alone."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        before, node.ops[0] = node.ops[0], SWAPS[type(node.ops[0])]()
        return node, f"{type(before).__name__} to {type(node.ops[0]).__name__}"
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
        before, node.op = node.op, SWAPS[type(node.op)]()
        return node, f"{type(before).__name__} to {type(node.op).__name__}"
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
        return node, f"to {node.value}"
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value = node.value + 1
        return node, f"{node.value - 1} to {node.value}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand, "not dropped"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return node.operand, "minus dropped"
    return None


class _Replace(ast.NodeTransformer):
    def __init__(self, target, replacement):
        self.target, self.replacement = target, replacement

    def visit(self, node):
        return self.replacement if node is self.target else self.generic_visit(node)


def campaign(place: Path, tally, repository: Path, count: int, seed: int = 0):
    """``count`` changes, one at a time, each with the tests of the two rooms."""
    chance = random.Random(seed)
    sources = [path for room in ROOMS for path in sorted((repository / "src" / "latentrobust" / room).rglob("*.py"))]
    sizes = [len(places(ast.parse(path.read_text()))) for path in sources]
    for number in range(count):
        copied = place / "mutant"
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(repository / "src", copied / "src")
        (copied / "conf").symlink_to(repository / "conf")
        (path,) = chance.choices(sources, sizes)
        tree = ast.parse(path.read_text())
        where = chance.choice(places(tree))
        node = list(ast.walk(tree))[where]
        line = getattr(node, "lineno", 0)
        before = ast.unparse(node)
        replacement, what = _changed(copy.deepcopy(node))
        target = copied / path.relative_to(repository)
        target.write_text(ast.unparse(ast.fix_missing_locations(_Replace(node, replacement).visit(tree))))
        tests = [str(repository / "tests" / room) for room in ROOMS]
        environment = {**os.environ, "PYTHONPATH": str(copied / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "2", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            command, cwd=copied, env=environment, capture_output=True, text=True, timeout=900, check=False
        )
        case = f"{path.relative_to(repository / 'src' / 'latentrobust')}:{line} `{before[:60]}` ({what})"
        tally.add(Outcome("a changed line is noticed", f"{number}: {case}", None if done.returncode else "survived"))

"""Write docs/configuration.md from conf/: every group, its options and what they say of themselves."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONF, PAGE = ROOT / "conf", ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

*Generated from `conf/` by `make docs`.* Every run is composed of groups: `group=option` chooses, `group.key=value`
overrides, `--cfg job --resolve` shows what comes out, `--config-dir` adds options of your own.
Groups that a run has are those of `conf/train.yaml` and `conf/evaluate.yaml`:

"""


def comment(path: Path) -> str:
    """What a file says of itself: its first lines of comment, as one sentence or several."""
    lines = []
    for line in path.read_text().splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").rstrip())
    return " ".join(lines).replace("|", "\\|")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in ("train", "evaluate"):
        parts.append(f"```yaml\n{(CONF / f'{name}.yaml').read_text().strip()}\n```\n")
    groups = sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF}, key=lambda group: group.as_posix())
    for group in groups:
        name = group.relative_to(CONF).as_posix()
        options = sorted(group.glob("*.yaml"))
        parts.append(f"## `{name}`\n\n| option | |\n|---|---|")
        parts += [f"| `{path.stem}` | {comment(path)} |" for path in options]
        parts.append("")
        texts = [re.sub(r"^(# @package.*\n)?(#.*\n)*", "", path.read_text()).strip() for path in options]
        shown = [f"# {name}={path.stem}\n{text}" for path, text in zip(options, texts, strict=True) if text]
        if shown:
            whole = "\n\n".join(shown)
            parts.append(f"<details><summary>What they set</summary>\n\n```yaml\n{whole}\n```\n\n</details>\n")
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(0 if PAGE.read_text() == page() else f"{PAGE} is not what conf/ says: make docs")
    PAGE.write_text(page())

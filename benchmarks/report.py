"""Run the benchmarks and write what they print, with what they say they do, into docs/performance.md.

Only sections named are run, by the names of their scripts; the others stay as they are in the page. A section that was
given another title there is kept behind them: that of another machine, say.

python benchmarks/report.py [NAME ...]
"""

import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "performance.md"
SECTIONS = {
    "forward": "Forwards",
    "runtimes": "Runtimes of other libraries",
    "shallow": "Shallow levels",
    "growth": "Growth with batches and sizes",
    "precision": "Similarity of maps in bfloat16",
    "extract": "Folders of images",
    "extract_memory": "Memory of long extractions",
    "cold_start": "From the start of a process to the first maps",
    "import_time": "Imports",
    "load": "Loading weights",
    "build": "Building with random weights",
    "attention": "Capturing attention",
    "training": "Training steps",
    "gpu": "On a GPU",
}
INTRODUCTION = """# Performance

Every number on this page comes from a run of a script in `benchmarks/`, by `python benchmarks/report.py`, which `make
bench` calls. Each section says on which machine, with which versions, when, and under which load. CPU time of one
thread does not count what other processes do, but feels what they do to caches and memory: ratios within a section are
right to about 5 %, and to a tenth in large batches, where chance decides how a process's memory lies: in eight fresh
processes of each, timm's own mobilenetv3_large_100 took 0.89 to 1.17 times as long as itself in batches of 16, timm's
0.94 to 1.14 times as long as featx's, and 1.07 times by the medians of sixteen processes (1.07 in batches of 1).
[Speed](speed.md) says what to do with them; `featx bench NAME` measures on your machine.
"""


def main() -> None:
    asked = sys.argv[1:] or list(SECTIONS)
    unknown = set(asked) - set(SECTIONS)
    if unknown:
        sys.exit(f"no benchmark is named {', '.join(sorted(unknown))}; choose among {', '.join(SECTIONS)}")
    for name in asked:
        print(f"{name} …", file=sys.stderr, flush=True)
        written = {**sections_of(PAGE), SECTIONS[name]: f"{explained(name)}\n\n{printed(name)}"}
        titles = [*SECTIONS.values(), *(title for title in written if title not in SECTIONS.values())]
        ordered = [f"## {title}\n\n{written[title]}" for title in titles if title in written]
        PAGE.write_text("\n".join([INTRODUCTION, *("\n".join([section, ""]) for section in ordered)]))


def sections_of(page: Path) -> dict[str, str]:
    """What is in the page so far, by title."""
    if not page.exists():
        return {}
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)[1:]
    return {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def explained(name: str) -> str:
    """What a script says of itself, without how to call it."""
    lines = (HERE / f"{name}.py").read_text().split('"""')[1]
    return lines.partition("\npython benchmarks/")[0].strip()


def printed(name: str) -> str:
    """What it prints, shown as it comes, with a blank line before its first table, as Markdown wants."""
    words = [sys.executable, str(HERE / f"{name}.py")]
    lines: list[str] = []
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"{name} ended with exit status {process.returncode}: its section stays as it was")
    return re.sub(r"(?<=[^|\n])\n(?=\|)", "\n\n", "".join(lines).strip())


if __name__ == "__main__":
    main()

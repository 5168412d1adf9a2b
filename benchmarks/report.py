"""Run the benchmarks and write their output and docstrings to docs/performance.md.

Name scripts to run only these; other sections of the page stay unchanged. A section whose title you changed in the
page, such as the results of another machine, is kept after the others.

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
    "scaling": "Growth with batches and sizes",
    "precision": "Similarity of maps in lower precision",
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

`python benchmarks/report.py` (`make bench`) runs the scripts in `benchmarks/` and writes every number on this page.
Each section states the machine, the versions, the date and the load. Single-thread CPU time excludes other processes'
time but is affected by cache and memory contention: ratios within a section are accurate to about 5 %. In large
batches they are accurate to about 10 %, because the memory layout of a process is random. In eight new processes
each, timm's mobilenetv3_large_100 took 0.89 to 1.17 times as long as itself in batches of 16, and timm's 0.94 to 1.14
times as long as featx's; by the medians of sixteen processes the latter ratio was 1.07 (1.07 in batches of 1).
[Speed](speed.md) explains how to use the runtimes; `featx bench NAME` measures on your machine.
"""


def main() -> None:
    names = sys.argv[1:] or list(SECTIONS)
    unknown = set(names) - set(SECTIONS)
    if unknown:
        sys.exit(f"no benchmark is named {', '.join(sorted(unknown))}; choose among {', '.join(SECTIONS)}")
    for name in names:
        print(f"{name} …", file=sys.stderr, flush=True)
        written = {**sections_of(PAGE), SECTIONS[name]: f"{description(name)}\n\n{output_of(name)}"}
        titles = [*SECTIONS.values(), *(title for title in written if title not in SECTIONS.values())]
        ordered = [f"## {title}\n\n{written[title]}" for title in titles if title in written]
        PAGE.write_text("\n".join([INTRODUCTION, *("\n".join([section, ""]) for section in ordered)]))


def sections_of(page: Path) -> dict[str, str]:
    """Return the current sections of the page, by title."""
    if not page.exists():
        return {}
    parts = re.split(r"^## (.+)$", page.read_text(), flags=re.MULTILINE)[1:]
    return {title: text.strip() for title, text in zip(parts[::2], parts[1::2], strict=True)}


def description(name: str) -> str:
    """Return the docstring of a script without its usage."""
    lines = (HERE / f"{name}.py").read_text().split('"""')[1]
    return lines.partition("\npython benchmarks/")[0].strip()


def output_of(name: str) -> str:
    """Run a script, echo its output, and return it with the blank line that Markdown needs before a table."""
    command = [sys.executable, str(HERE / f"{name}.py")]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            lines.append(line)
            print(line, end="", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"{name} ended with exit status {process.returncode}: its section was not changed")
    return re.sub(r"(?<=[^|\n])\n(?=\|)", "\n\n", "".join(lines).strip())


if __name__ == "__main__":
    main()

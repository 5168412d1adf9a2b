"""Cost of `import featx` compared with `import torch`: CPU seconds of new processes, interleaved, medians.

python benchmarks/import_time.py
"""

import platform
import subprocess
import sys
from statistics import median

REPEATS = 7
STATEMENTS = ("import torch", "import featx", "import featx; featx.list_models()", "import timm")


def cpu_seconds(statement: str) -> float:
    code = f"import os, sys; {statement}; times = os.times(); print(times.user + times.system)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    import torch

    machine = f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}"
    print(f"{machine}, {REPEATS} processes each\n")
    seconds = {statement: [] for statement in STATEMENTS}
    for _ in range(REPEATS):
        for statement in STATEMENTS:
            seconds[statement].append(cpu_seconds(statement))
    floor = median(seconds["import torch"])
    print("| statement | CPU seconds, median | ratio to torch |\n|---|---|---|")
    for statement, measured in seconds.items():
        print(f"| `{statement}` | {median(measured):.2f} | {median(measured) / floor:.2f} |")


if __name__ == "__main__":
    main()

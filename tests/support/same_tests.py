"""Check that no test was lost or renamed since a revision: `python tests/support/same_tests.py REVISION`.

Tests are compared by class, name and parameters, so that files may move. Prints the differences, and exits with 1 if
there are any.
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[2]


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        before_root = Path(folder, "before")
        subprocess.run(["git", "worktree", "add", "-q", "--detach", before_root, sys.argv[1]], cwd=ROOT, check=True)
        try:
            before, after = collected(before_root), collected(ROOT)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before_root], cwd=ROOT, check=True)
    lost, new = before - after, after - before
    for sign, tests in (("-", lost), ("+", new)):
        sys.stdout.writelines(f"{sign} {name}\n" for name in sorted(tests.elements()))
    sys.stdout.write(f"{before.total()} tests before, {after.total()} now: {lost.total()} lost, {new.total()} new\n")
    return 1 if lost or new else 0


def collected(root: Path) -> Counter[str]:
    """The tests of a tree, each by its name and parameters, with how often it occurs."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", "tests"]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    return Counter(line.partition("::")[2] for line in done.stdout.splitlines() if "::" in line)


if __name__ == "__main__":
    sys.exit(main())

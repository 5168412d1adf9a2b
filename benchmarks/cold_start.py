"""Time from process start to the first maps of a resnet50 in a local file, compared with timm and `import torch`.

Each run is a new process; interleaved, medians. Python's bytecode is cached, as from the second start on, or compiled
again, as in the first start of a container. The weights file is in the page cache.

python benchmarks/cold_start.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

from subprocess_runs import machine, medians

REPEATS = 5
MAPS = "model.eval()\nwith torch.inference_mode(): model(torch.zeros(1, 3, 224, 224))"
CODES = {
    "`import torch` alone": "import torch",
    "featx": f"""
import torch, featx
model = featx.create_model("resnet50", features_only=True, checkpoint_path={{path!r}})
{MAPS}""",
    "timm": f"""
import torch, timm
model = timm.create_model("resnet50", pretrained=True, features_only=True, pretrained_cfg_overlay=dict(file={{path!r}}))
{MAPS}""",
}
# CPU seconds and wall-clock seconds since the process started
PRINT = """
import os, time
began = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
print(time.process_time(), time.clock_gettime(time.CLOCK_BOOTTIME) - began)
"""


def main() -> None:
    print(f"{machine()}; {REPEATS} processes each\n")
    print("| bytecode | process | CPU s | timm / this | wall s |\n|---|---|---|---|---|")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.safetensors"
        write(path)
        codes = {name: code.format(path=str(path)) + PRINT for name, code in CODES.items()}
        for state, bytecode in {"cached": Path(folder) / "bytecode", "compiled": None}.items():
            measured = medians(codes, REPEATS, bytecode=bytecode)
            for name, (cpu, wall) in measured.items():
                print(f"| {state} | {name} | {cpu:.2f} | {measured['timm'][0] / cpu:.2f} | {wall:.2f} |", flush=True)


def write(path: Path) -> None:
    """Write a resnet50 with random weights to a file."""
    from safetensors.torch import save_file

    import featx

    save_file(featx.create_model("resnet50").state_dict(), path, metadata={"format": "pt"})


if __name__ == "__main__":
    main()

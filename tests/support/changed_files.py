"""What people do to a file of weights while a model has been loaded from it; each case runs in a process of its own.

As a program it runs all cases in a folder and prints their exit codes: a file that is cut off under its mapping ends
the process that looks there, which no test in it could tell.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path

import torch
from safetensors.torch import save_file
from support.weight_places import INDEX, sharded, stored
from torch import Tensor, nn

import featx
from featx.weights.checkpoint import LoadOptions
from featx.weights.convert import convert as converted
from featx.weights.serialization import write_checkpoint

NAME = "mobilenetv3_small_050"
FILES = ("w.safetensors", "w.pth", "legacy.pth", "w.npz", "w.ckpt", INDEX)


@cache
def empty() -> dict[str, Tensor]:
    return featx.create_model(NAME, device="meta").state_dict()


def state(value: float) -> dict[str, Tensor]:
    """A checkpoint of the model: running variances and counters are one, and all else is the value."""
    ones = ("running_var", "num_batches_tracked")
    return {
        name: torch.full(tensor.shape, 1 if name.endswith(ones) else value, dtype=tensor.dtype)
        for name, tensor in empty().items()
    }


def write(folder: Path, name: str, value: float = 0.125) -> Path:
    """The checkpoint as a file of that name, or as several that an index names."""
    folder.mkdir(exist_ok=True)
    held = state(value)
    if name == INDEX:
        half = len(held) // 2
        parts = {"one": dict(list(held.items())[:half]), "two": dict(list(held.items())[half:])}
        for file, data in sharded(1, **parts).items():
            (folder / file).write_bytes(data)
    else:
        (folder / name).write_bytes(stored(name, held))
    return folder / name


def files_of(path: Path) -> list[Path]:
    return [path] if path.name != INDEX else [path.with_name("one.safetensors"), path.with_name("two.safetensors")]


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def cut_off(path: Path) -> None:
    os.truncate(path, 0)


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"\xff" * path.stat().st_size)
    os.replace(other, path)


CHANGES = (overwrite, cut_off, delete, replace)


def created(path: Path) -> nn.Module:
    return featx.create_model(NAME, checkpoint_path=path)


def extractor(path: Path) -> nn.Module:
    return featx.create_model(NAME, features_only=True, out_indices=[-1], checkpoint_path=path)


def filled(path: Path) -> nn.Module:
    model = featx.create_model(NAME, checkpoint_path=state(0))
    featx.load_weights(model, path)
    return model


def require_value(model: nn.Module, value: float = 0.125) -> None:
    """Every tensor has the value, and the model runs."""
    for name, tensor in model.state_dict().items():
        one = name.endswith(("running_var", "num_batches_tracked"))
        assert (tensor == (1 if one else value)).all(), name
    with torch.inference_mode():
        maps = model.eval()(torch.ones(1, 3, 32, 32))
    assert all(m.isfinite().all() for m in (maps if isinstance(maps, list) else [maps]))


def change_after_loading(name: str, change: Callable[[Path], None], folder: Path) -> None:
    for entry in (created, extractor, filled) if change is cut_off else (created,):
        path = write(folder, name)
        model = entry(path)
        for file in files_of(path):
            change(file)
        require_value(model)


def resume(save: Callable[[nn.Module, Path], None], name: str, folder: Path) -> None:
    """Train, save over the file, and resume from it, several times; the models of all rounds keep their tensors."""
    path, models = write(folder, name, 0.0), []
    for turn in range(3):
        model = created(path)
        require_value(model, turn / 8)
        with torch.no_grad():
            for key, tensor in model.state_dict().items():
                if not key.endswith(("running_var", "num_batches_tracked")):
                    tensor += 1 / 8
        save(model, path)
        models.append(model)
    for turn, model in enumerate(models, 1):
        require_value(model, turn / 8)


def save_pytorch(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path)


def save_safetensors(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def save_folder(model: nn.Module, path: Path) -> None:
    featx.save(model, path.parent)


def save_converted(model: nn.Module, path: Path) -> None:
    write_checkpoint(model.state_dict(), path)


def convert(name: str, folder: Path) -> None:
    """The command writes over the file that it reads."""
    path = write(folder, name)
    for layout in ("torchvision", "native"):
        write_checkpoint(converted(path, NAME, layout, LoadOptions()), path)
    require_value(created(path))


def being_written(name: str, folder: Path) -> None:
    """Another process writes the file again and again while it is loaded: models are whole, or there is an error."""
    path = write(folder, name)
    data = path.read_bytes()
    if not (writer := os.fork()):
        while os.getppid() != 1:
            for length in (0, len(data) // 2, len(data)):
                path.write_bytes(data[:length])
        os._exit(0)
    try:
        for _ in range(8):
            try:
                require_value(created(path))
            except (featx.CheckpointError, featx.WeightsNotFoundError):
                continue
    finally:
        os.kill(writer, 9)
        os.waitpid(writer, 0)


CASES: dict[str, Callable[[Path], None]] = {
    f"{name}, {change.__name__}": partial(change_after_loading, name, change)
    for name, change in product(FILES, CHANGES)
}
CASES |= {
    "resume with torch.save": partial(resume, save_pytorch, "w.pth"),
    "resume with safetensors": partial(resume, save_safetensors, "w.safetensors"),
    "resume with featx.save": partial(resume, save_folder, "model.safetensors"),
}
CASES |= {f"convert {name} in place": partial(convert, name) for name in ("w.safetensors", "w.pth")}
CASES |= {f"{name}, being written": partial(being_written, name) for name in FILES if name != INDEX}


def in_a_process(case: Callable[[Path], None], folder: Path) -> int:
    """The exit code of a process that runs the case: 0, 1 after an exception, or minus the signal that ended it."""
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        case(folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    empty()
    codes = {title: in_a_process(case, Path(sys.argv[1]) / str(i)) for i, (title, case) in enumerate(CASES.items())}
    sys.stdout.write(json.dumps(codes))

"""The `aot` runtime: graphs compiled ahead of time by AOTInductor, in a package that needs no code of the model."""

import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ContractError
from ..wrappers.refusals import ThirdPartyError, third_party
from .description import KEY, Description, from_json, to_json
from .engine import FileEngine
from .graph import Graph

# From the least to the most that a processor can do; each can do what is before it.
CAPABILITIES = ["DEFAULT", "AVX2", "AVX512"]
SETTINGS = {"freezing": True, "cpp.dynamic_threads": True}  # the number of threads is that of the process that runs


def machine(device: str) -> dict[str, str]:
    """What a package made here depends on."""
    major, minor = torch.__version__.split(".")[:2]
    return {"device": device, "torch": f"{major}.{minor}", "cpu": torch.backends.cpu.get_cpu_capability()}


def write_pt2(graph: Graph, path: Path) -> None:
    """Compile the graph and write it; ContractError if PyTorch's compiler cannot."""
    from torch._inductor import aoti_compile_and_package

    try:
        with torch.no_grad():
            third_party(aoti_compile_and_package, graph.program, package_path=str(path), inductor_configs=SETTINGS)
    except ThirdPartyError as error:
        told = f"{error}".strip().partition("\n")[0]
        raise ContractError(f"PyTorch's compiler cannot compile the model ({told}): use runtime='eager'") from error


def describe_pt2(path: Path, said: Description) -> None:
    """Add a description to a package that has none."""
    with zipfile.ZipFile(path, "a") as package:
        root = package.namelist()[0].partition("/")[0]
        package.writestr(f"{root}/extra/{KEY}.json", to_json(said))


def read_pt2(path: Path) -> Description:
    """The description in a package that `featx.export` wrote. Nothing in the package is run.

    Raises CheckpointError if it has none.
    """
    try:
        with zipfile.ZipFile(path) as package:
            found = [name for name in package.namelist() if name.endswith(f"/extra/{KEY}.json")]
            text = package.read(found[0]) if found else None
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise CheckpointError(f"{path} is no whole package ({error}): write it again with featx.export") from error
    if text is None:
        raise CheckpointError(f"{path} was not written by featx.export: it has no description of levels")
    return from_json(text, path)


class AotEngine(FileEngine):
    """A package, loaded."""

    runtime = "aot"
    hides_nan = True

    def load(self) -> None:
        from torch._inductor import aoti_load_package

        self._require_machine()
        made_for = self.said.machine or machine("cpu")
        self.device, self.dtype = torch.device(made_for["device"]), self.said.dtype
        try:
            self._package = aoti_load_package(str(self.path))
        except RuntimeError as error:
            raise CheckpointError(f"PyTorch cannot load {self.path}: {error}") from error

    def _require_machine(self) -> None:
        """Raise CheckpointError if the package was compiled for what this machine is not."""
        wanted, here = self.said.machine or {}, machine("cpu")
        problems = [f"PyTorch {wanted.get('torch')}, here is {here['torch']}"] * (wanted.get("torch") != here["torch"])
        if not _can(here["cpu"], wanted.get("cpu", "")):
            problems.append(f"processors with {wanted.get('cpu')}, this one has {here['cpu']}")
        if wanted.get("device") == "cuda" and not torch.cuda.is_available():
            problems.append("CUDA, which is not available here")
        if problems:
            raise CheckpointError(f"{self.path} was compiled for {'; for '.join(problems)}: export it again here")

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            return self._package(x.detach())


def _can(capability: str, wanted: str) -> bool:
    if capability in CAPABILITIES and wanted in CAPABILITIES:
        return CAPABILITIES.index(capability) >= CAPABILITIES.index(wanted)
    return capability == wanted

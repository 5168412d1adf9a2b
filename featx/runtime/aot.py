"""The `aot` runtime: graphs compiled ahead of time by AOTInductor, in a package that needs no code of the model."""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from ..errors import CheckpointError, ContractError, in_short
from ..wrappers.refusals import ThirdPartyError, third_party
from .description import KEY, Description, from_json, to_json
from .engine import FileEngine
from .graph import Graph

# From the least to the most that a processor can do; each can do what is before it.
CAPABILITIES = ["DEFAULT", "AVX2", "AVX512"]
LARGEST = 16 * 2**20  # bytes of a description
# What reading a damaged zip raises.
REFUSALS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error)
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
        package.writestr(f"{root}/extra/{KEY}.sha256", _digest(package))


def read_pt2(path: Path) -> Description:
    """The description in a package that `featx.export` wrote. Nothing in the package is run.

    Raises CheckpointError if it has none.
    """
    try:
        with zipfile.ZipFile(path) as package:
            damaged = package.testzip()
            digest = _member(package, "sha256")  # which packages of earlier versions lack
            text = _member(package, "json")
            changed = digest is not None and digest != _digest(package)
    except (*REFUSALS, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no whole package ({error}): write it again with featx.export") from error
    if text is None:
        raise CheckpointError(f"{path} was not written by featx.export: it has no description of levels")
    said = from_json(text, path)
    if damaged is not None or changed:
        raise CheckpointError(f"{path} was changed after it was written, or is damaged: write it again")
    return said


def _member(package: zipfile.ZipFile, suffix: str) -> bytes | None:
    found = [one for one in package.infolist() if one.filename.endswith(f"/extra/{KEY}.{suffix}")]
    if not found:
        return None
    if found[0].file_size > LARGEST:
        raise zipfile.BadZipFile(f"its description has {found[0].file_size} bytes")
    return package.read(found[0])


def _digest(package: zipfile.ZipFile) -> bytes:
    """SHA-256 of the names and checksums of the package's members but of the digest itself."""
    members = [one for one in package.infolist() if not one.filename.endswith(f"/extra/{KEY}.sha256")]
    return sha256("".join(f"{one.filename}\0{one.CRC}\0" for one in members).encode()).hexdigest().encode()


class AotEngine(FileEngine):
    """A package, loaded."""

    runtime = "aot"
    hides_nan = True

    def load(self, streams: int = 1) -> None:
        del streams
        from torch._inductor import aoti_load_package

        self._require_machine()
        made_for = self.said.machine or machine("cpu")
        self.device, self.dtype = torch.device(made_for["device"]), self.said.dtype
        try:
            self._package = third_party(aoti_load_package, str(self.path))
        except ThirdPartyError as error:
            raise CheckpointError(f"PyTorch cannot load {self.path}: {in_short(error.original)}") from error

    def _require_machine(self) -> None:
        """Raise CheckpointError if the package was compiled for what this machine is not."""
        wanted, here = self.said.machine or {}, machine("cpu")
        problems = [f"PyTorch {wanted.get('torch')}, here is {here['torch']}"] * (wanted.get("torch") != here["torch"])
        if not _can(here["cpu"], wanted.get("cpu", "")):
            problems.append(f"processors with {wanted.get('cpu')}, this one has {here['cpu']}")
        if wanted.get("device") == "cuda" and not torch.cuda.is_available():
            problems.append("CUDA, which is not available here")
        if wanted.get("device") not in ("cpu", "cuda"):
            problems.append(f"a device that is not known, {wanted.get('device')!r}")
        if problems:
            raise CheckpointError(f"{self.path} was compiled for {'; for '.join(problems)}: export it again here")

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        with torch.no_grad():
            try:
                return self._package(x.detach())
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                raise CheckpointError(f"{self.path} cannot run on these images: {in_short(error)}") from error


def _can(capability: str, wanted: str) -> bool:
    if capability in CAPABILITIES and wanted in CAPABILITIES:
        return CAPABILITIES.index(capability) >= CAPABILITIES.index(wanted)
    return capability == wanted

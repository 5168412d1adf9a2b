"""Parts of OpenVINO's graphs that stay in float32 where the rest computes in a lower precision.

OpenVINO keeps operations with an attribute, `precise`, in their own precision. Its Python interface cannot set it, and
its files can have it, so that the graph is written to one, marked there and read again.
"""

from collections.abc import Collection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

LAYERS = ("Convolution", "GroupConvolution", "MatMul")
VALUES = ("Const", "Parameter", "Result")


def kept_in_float32(core: Any, graph: Any, layers: Collection[str]) -> Any:
    """A copy of a graph that stays in float32 up to the first of its layers that are none of these.

    Args:
        core: OpenVINO's.
        graph: A graph of an ONNX file, whose operations are named for the modules that they are of.
        layers: Paths of modules.
    """
    import openvino

    lowered = _lowered(graph, layers)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.xml"
        openvino.serialize(graph, path)
        tree = ElementTree.parse(path)
        for operation in tree.iterfind("layers/layer"):
            if operation.get("type") not in VALUES and operation.get("name") not in lowered:
                information = operation.find("rt_info")
                if information is None:
                    information = ElementTree.SubElement(operation, "rt_info")
                ElementTree.SubElement(information, "attribute", name="precise", version="0")
        tree.write(path)
        return core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())


def _lowered(graph: Any, layers: Collection[str]) -> set[str]:
    """Names of the layers that do not stay, and of all that depends on them."""
    found: set[str] = set()
    for node in graph.get_ordered_ops():
        name, is_layer = node.get_friendly_name(), node.get_type_name() in LAYERS
        given = (value.get_source_output().get_node().get_friendly_name() for value in node.inputs())
        if (is_layer and not any(name.startswith(f"{path}/") for path in layers)) or not found.isdisjoint(given):
            found.add(name)
    return found

"""The table of a MobileViT's stages: its rows, their strides and dilations, and the YAML it can be written in."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

from ...errors import ArgumentError
from .steps import OUTPUT_STRIDES, Step


@dataclass(frozen=True, slots=True)
class Mv2Stage:
    """Inverted residuals, of which the first takes the stride.

    ir_expansion_ratio: channels inside one over those that enter it; the product is rounded to a multiple of 8.
    """

    out_channels: int
    num_blocks: int
    stride: int
    ir_expansion_ratio: float

    dilate: ClassVar[bool] = False

    @property
    def depth(self) -> int:
        return self.num_blocks


@dataclass(frozen=True, slots=True)
class MobileViTStage:
    """An inverted residual, which is left out where the stage has no stride, and a block with attention.

    num_blocks: transformer blocks in it. attention_channels: of their tokens. ffn_intermediate_channels: inside their
    feed-forward layers. dilate: trade the stride for dilation, whatever the output stride.
    """

    out_channels: int
    num_blocks: int
    stride: int
    ir_expansion_ratio: float
    attention_channels: int
    ffn_intermediate_channels: int
    dilate: bool

    @property
    def depth(self) -> int:
        return 2 if self.stride > 1 else 1


StageRow = Mv2Stage | MobileViTStage


def plan_stages(rows: Sequence[StageRow], output_stride: int) -> list[tuple[Step, int]]:
    """(step of the first block, total stride after the stage) per stage.

    A stage trades its stride for dilation where it says so, or where it would exceed an output stride of 8 or 16; 32
    leaves the table as it is.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ArgumentError(f"output_stride={output_stride!r}: choose one of {OUTPUT_STRIDES}")
    reduction, dilation, plan = 2, 1, []
    for row in rows:
        traded = row.dilate or (output_stride < 32 and reduction * row.stride > output_stride)
        stride, entry = (1, dilation) if traded else (row.stride, dilation)
        dilation = dilation * row.stride if traded else dilation
        reduction *= stride
        plan.append((Step(stride, entry, dilation), reduction))
    return plan


BLOCK_TYPES: dict[str, type[StageRow]] = {"mv2": Mv2Stage, "mobilevit": MobileViTStage}
PARAMS = {
    "patch_size": int,
    "num_attention_heads": int,
    "attention_dropout_prob": float,
    "ffn_dropout_prob": float,
    "output_expansion_ratio": float,
    "use_fusion_layer": bool,
}


def read_table(path: str | Path) -> tuple[tuple[StageRow, ...], dict[str, Any]]:
    """The rows and the parameters of the MobileViT that a YAML file of NetsPresso Trainer's shape describes.

    Read is the mapping at `model.architecture.backbone`, or the whole file if it has no `model`: `name: mobilevit`,
    `params` with all of PARAMS, and `stage_params` with a row per stage, whose `block_type` says which fields it has
    besides: those of Mv2Stage ("mv2") or of MobileViTStage ("mobilevit"). Raises ArgumentError naming every key that is
    unknown, missing or of another type, FileNotFoundError if there is no such file.
    """
    import yaml

    try:
        backbone = _backbone(yaml.safe_load(Path(path).read_text()))
    except yaml.YAMLError as error:
        raise ArgumentError(f"{path} is no YAML: {error}") from error
    problems = list(_problems(backbone))
    if problems:
        raise ArgumentError(f"{path} describes no MobileViT:\n" + "\n".join(f"  {problem}" for problem in problems))
    rows = [dict(row) for row in backbone["stage_params"]]
    return tuple(BLOCK_TYPES[row.pop("block_type")](**row) for row in rows), dict(backbone["params"])


def _backbone(tree: Any) -> Any:
    """The part of the file that describes the backbone, None if it has a `model` without one."""
    where = ("model", "architecture", "backbone") if isinstance(tree, Mapping) and "model" in tree else ()
    for key in where:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _problems(backbone: Any) -> Iterator[str]:
    """What is wrong with the mapping of a backbone."""
    yield from _unfit("backbone", backbone, {"name": str, "params": dict, "stage_params": list})
    parts = backbone if isinstance(backbone, Mapping) else {}
    if parts.get("name", "mobilevit") != "mobilevit":
        yield f"name is {parts['name']!r}, expected 'mobilevit'"
    if isinstance(parts.get("params"), Mapping):
        yield from _unfit("params", parts["params"], PARAMS)
    rows = parts.get("stage_params")
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        yield from _row_problems(f"stage_params[{number}]", row)


def _row_problems(where: str, row: Any) -> Iterator[str]:
    kind = row.get("block_type") if isinstance(row, Mapping) else None
    if kind not in list(BLOCK_TYPES):
        yield f"{where}: block_type is {kind!r}, expected one of {list(BLOCK_TYPES)}"
        return
    types = get_type_hints(BLOCK_TYPES[kind])
    yield from _unfit(where, row, {"block_type": str, **{f.name: types[f.name] for f in fields(BLOCK_TYPES[kind])}})


def _unfit(where: str, given: Any, expected: Mapping[str, type]) -> Iterator[str]:
    """Keys of `given` that are unknown, missing or of another type than expected."""
    if not isinstance(given, Mapping):
        yield f"{where} is {given!r}, expected a mapping with {list(expected)}"
        return
    for key in given:
        if key not in expected:
            yield f"{where}: {key!r} is unknown, expected are {list(expected)}"
    for key, kind in expected.items():
        if key not in given:
            yield f"{where}: {key!r} is missing"
        elif not _is_a(kind, given[key]):
            yield f"{where}: {key} is {given[key]!r}, expected {kind.__name__}"


def _is_a(kind: type, value: object) -> bool:
    """Whether a value from YAML is of that type: an int is a float too, true and false are no numbers."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)

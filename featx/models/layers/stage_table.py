"""The stage table of MobileViT: its rows, their strides and dilations, and its YAML format."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from reprlib import Repr
from typing import Any, ClassVar, get_type_hints

from ...errors import ArgumentError, WeightsNotFoundError, in_short, shortened
from .steps import OUTPUT_STRIDES, Step


@dataclass(frozen=True, slots=True)
class Mv2Stage:
    """Inverted residuals, the first with the stride.

    ir_expansion_ratio: inner channels relative to the input; the product is rounded to a multiple of 8.
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
    """An inverted residual, if the stage has a stride, and a block with attention.

    Attributes:
        num_blocks: transformer blocks in the attention block.
        attention_channels: channels of their tokens.
        ffn_intermediate_channels: hidden channels of their MLPs.
        dilate: dilation instead of stride, for any output stride.
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

    A stage has dilation instead of stride if its row has `dilate`, or if it would exceed an output stride of 8 or 16.
    An output stride of 32 keeps the table unchanged.
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


# Allowed values in a file: implausible numbers of blocks or channels would take too long to build.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("patch_size", "stride"), (1, 64)),
    **dict.fromkeys(("num_attention_heads", "num_blocks"), (1, 256)),
    **dict.fromkeys(("out_channels", "attention_channels", "ffn_intermediate_channels"), (1, 16_384)),
    **dict.fromkeys(("output_expansion_ratio", "ir_expansion_ratio"), (0.01, 100)),
    **dict.fromkeys(("attention_dropout_prob", "ffn_dropout_prob"), (0, 1)),
}
MOST_STAGES, MOST_PROBLEMS = 32, 10
# A published description has three thousand bytes and neither aliases nor brackets.
LARGEST_FILE, MOST_ALIASES, MOST_OPENED = 1 << 16, 16, 200

# What PyYAML raises besides its own errors for dates, numbers and nesting that cannot be.
YAML_ERRORS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def read_table(path: str | Path) -> tuple[tuple[StageRow, ...], dict[str, Any]]:
    """Read the rows and the parameters of a MobileViT from a YAML file in the format of NetsPresso Trainer.

    The mapping at `model.architecture.backbone`, or the whole file without `model`, must have `name: mobilevit`,
    `params` with all of PARAMS, and `stage_params` with one row per stage. Its `block_type` selects the other fields:
    those of Mv2Stage ("mv2") or of MobileViTStage ("mobilevit").

    Raises:
        ArgumentError: keys are unknown, missing, of another type or out of range; the message lists all.
        WeightsNotFoundError: the file does not exist.
    """
    backbone = _backbone(read_yaml(Path(path)))
    problems = list(_problems(backbone))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in shortened(problems, MOST_PROBLEMS))
        raise ArgumentError(f"{path} describes no MobileViT:{lines}")
    rows = [dict(row) for row in backbone["stage_params"]]
    return tuple(BLOCK_TYPES[row.pop("block_type")](**row) for row in rows), dict(backbone["params"])


def read_yaml(path: Path) -> Any:
    """What a small YAML file says, in plain values; ArgumentError if it is none, or repeats too much by aliases."""
    import yaml

    if not os.path.isfile(path):  # which is false for a name that no file can have
        raise WeightsNotFoundError(f"{path} is not a file: expected a description of a MobileViT in YAML")
    if (size := path.stat().st_size) > LARGEST_FILE:
        raise ArgumentError(f"{path} has {size} bytes: expected a description of at most {LARGEST_FILE}")
    data = path.read_bytes()
    if (opened := data.count(b"[") + data.count(b"{")) > MOST_OPENED:  # PyYAML looks through all of them at each word
        raise ArgumentError(f"{path} has {opened} brackets, more than {MOST_OPENED}: expected a description in lines")
    try:
        aliases = sum(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, yaml.SafeLoader))
        tree = yaml.safe_load(data) if aliases <= MOST_ALIASES else None
    except (*YAML_ERRORS, yaml.YAMLError) as error:
        raise ArgumentError(f"{path} is not YAML: {in_short(error)}") from error
    if aliases > MOST_ALIASES:  # each may stand for all that came before
        raise ArgumentError(f"{path} has {aliases} aliases, more than {MOST_ALIASES}: write out what they stand for")
    return tree


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
        yield f"name is {_brief(parts['name'])}, expected 'mobilevit'"
    if isinstance(parts.get("params"), Mapping):
        yield from _unfit("params", parts["params"], PARAMS)
    rows = parts.get("stage_params")
    if isinstance(rows, list) and len(rows) > MOST_STAGES:
        yield f"stage_params has {len(rows)} rows, expected at most {MOST_STAGES}"
        return
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        yield from _row_problems(f"stage_params[{number}]", row)


def _row_problems(where: str, row: Any) -> Iterator[str]:
    kind = row.get("block_type") if isinstance(row, Mapping) else None
    if kind not in list(BLOCK_TYPES):
        yield f"{where}: block_type is {_brief(kind)}, expected one of {list(BLOCK_TYPES)}"
        return
    types = get_type_hints(BLOCK_TYPES[kind])
    yield from _unfit(where, row, {"block_type": str, **{f.name: types[f.name] for f in fields(BLOCK_TYPES[kind])}})


def _unfit(where: str, given: Any, expected: Mapping[str, type]) -> Iterator[str]:
    """Keys of `given` that are unknown, missing or of another type than expected."""
    if not isinstance(given, Mapping):
        yield f"{where} is {_brief(given)}, expected a mapping with {list(expected)}"
        return
    for key in given:
        if key not in expected:
            yield f"{where}: {_brief(key)} is unknown, expected are {list(expected)}"
    for key, kind in expected.items():
        if key not in given:
            yield f"{where}: {key!r} is missing"
        elif not _is_a(kind, given[key]):
            yield f"{where}: {key} is {_brief(given[key])}, expected {kind.__name__}"
        elif key in RANGES and not RANGES[key][0] <= given[key] <= RANGES[key][1]:
            yield f"{where}: {key} is {_brief(given[key])}, expected {RANGES[key][0]} to {RANGES[key][1]}"


def _is_a(kind: type, value: object) -> bool:
    """Whether a YAML value has that type. An int is accepted as a float; true and false are not numbers."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float if kind is float else kind)


def _brief(value: Any) -> str:
    short = Repr()
    short.maxstring = short.maxother = short.maxlong = 60
    return short.repr(value)

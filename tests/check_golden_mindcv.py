"""MindCV's part of check_golden.py: its options as fields of our configurations, its levels as places in our networks.

Logits are the classifier's; maps are taken where MindCV's level lies in our network, while the classifier runs, and
from an extractor besides where it has the same levels.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import featx
from featx.models.efficientnet import B0, MOBILENETV2, V2_L, V2_M, V2_S, V2_XL
from featx.models.layers.attention import round_chs
from featx.models.layers.mobile import DepthwiseSeparable, Row, Stage, deepen, widen
from featx.models.layers.residual import BasicBlock, Bottleneck, Residual
from featx.models.mobilenetv3 import LARGE, SMALL
from featx.models.resnest import Splits

# MindCV's options to the name of a variant of ours and the fields in which it differs.
Options = Mapping[str, Any]
Build = Callable[[Options], tuple[str, dict[str, Any]]]


def resnet(options: Options) -> tuple[str, dict[str, Any]]:
    block = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}[options.get("block", "Bottleneck")]
    style = Residual(options.get("groups", 1), options.get("base_width", 64))
    return "resnet50", {"depths": tuple(options["layers"]), "block": block, "style": style}


def resnest(options: Options) -> tuple[str, dict[str, Any]]:
    stem = options.get("stem_width", 32)
    style = Splits(
        options.get("group", 1),
        options.get("bottleneck_width", 64),
        radix=options.get("radix", 2),
        pool_first=options.get("avd_first", False),
    )
    return "resnest50d", {"depths": tuple(options["layers"]), "style": style, "stem": (stem, stem, 2 * stem)}


def repvgg(options: Options) -> tuple[str, dict[str, Any]]:
    depths = tuple(options["num_blocks"])
    groups_of = {int(block): groups for block, groups in (options.get("override_group_map") or {}).items()}
    first = [1 + sum(depths[:stage]) for stage in range(len(depths))]  # blocks are counted throughout, the stem is 0
    groups = tuple(
        tuple(groups_of.get(block, 1) for block in range(start, start + depth))
        for start, depth in zip(first, depths, strict=True)
    )
    return "repvgg_a0", {"depths": depths, "widths": tuple(options["width_multiplier"]), "groups": groups}


def convnext(options: Options) -> tuple[str, dict[str, Any]]:
    grn = options.get("use_grn", False)
    name = "convnextv2_tiny" if grn else "convnext_tiny"
    return name, {"depths": tuple(options["depths"]), "chs": tuple(options["dims"])}


def rexnet(options: Options) -> tuple[str, dict[str, Any]]:
    return "rexnet_100", {"width": options["width_mult"]}


def hrnet(options: Options) -> tuple[str, dict[str, Any]]:
    if "stage_cfg" not in options:
        return "hrnet_w32", {"width": options["width"]} if "width" in options else {}
    first, *others = (options["stage_cfg"][f"stage{number}"] for number in (1, 2, 3, 4))
    fields = {
        "width": others[0]["num_channels"][0],
        "modules": tuple(stage["num_modules"] for stage in others),
        "depth": others[0]["num_blocks"][0],
        "stem_depth": first["num_blocks"][0],
        "stem_chs": first["num_channels"][0],
    }
    return "hrnet_w32", fields


def mobilenetv2(options: Options) -> tuple[str, dict[str, Any]]:
    alpha = options["alpha"]
    fields = {"stages": widen(MOBILENETV2, alpha), "stem_chs": round_chs(32 * alpha)}
    return "mobilenetv2_100", {**fields, "head_chs": round_chs(1280 * max(1.0, alpha))}


def mobilenetv3(options: Options) -> tuple[str, dict[str, Any]]:
    alpha, large = options["alpha"], options["arch"] == "large"
    stages = absolutely_wider(LARGE if large else SMALL, alpha)
    head_chs = round_chs(alpha * (1280 if large else 1024))
    return f"mobilenetv3_{options['arch']}_100", {
        "stages": stages,
        "head_chs": head_chs,
        "stem_chs": round_chs(16 * alpha),
    }


def repeated(stage: Stage) -> Iterator[Row]:
    """A row per block."""
    for row in stage:
        yield from [replace(row, repeats=1)] * row.repeats


def absolutely_wider(stages: tuple[Stage, ...], alpha: float) -> tuple[Stage, ...]:
    """The table with channels times `alpha` inside blocks, too, where `widen` keeps their ratio to what enters."""
    before, entering = 16, round_chs(16 * alpha)
    wider: list[Stage] = []
    for stage in stages[:-1]:
        rows: list[Row] = []
        for row in repeated(stage):
            inner = round_chs(round_chs(before * row.expand) * alpha)
            before, chs = row.chs, round_chs(row.chs * alpha)
            block = DepthwiseSeparable if inner == entering else row.block
            stride = 1 if rows else row.stride
            rows.append(replace(row, block=block, chs=chs, expand=inner / entering, stride=stride))
            entering = chs
        wider.append(tuple(rows))
    (last,) = stages[-1]
    return (*wider, (replace(last, chs=6 * entering),))


V2 = {"s": (V2_S, 24), "m": (V2_M, 24), "l": (V2_L, 32), "xl": (V2_XL, 32)}


def efficientnet(options: Options) -> tuple[str, dict[str, Any]]:
    if size := re.search(r"_v2_(\w+)", options["arch"]):
        stages, stem_chs = V2[size[1]]
        return "efficientnetv2_s", {"stages": stages, "stem_chs": stem_chs}
    width = options.get("width_mult", 1.0)
    stages = widen(deepen(B0, options.get("depth_mult", 1.0)), width)
    return "efficientnet_b0", {
        "stages": stages,
        "stem_chs": round_chs(32 * width),
        "head_chs": 4 * stages[-1][0].chs,
    }


# By the beginning of the case's name behind `mindcv_`.
BUILDS: dict[str, Build] = {
    "resnet": resnet,
    "resnext": resnet,
    "resnest": resnest,
    "repvgg": repvgg,
    "convnext": convnext,
    "rexnet": rexnet,
    "hrnet": hrnet,
    "mobilenet_v2": mobilenetv2,
    "mobilenet_v3": mobilenetv3,
    "efficientnet": efficientnet,
}


# MindCV's names of variants to ours, where a case has no options but the number of classes.
VARIANTS = (
    (r"resnest(14|26|50)$", r"resnest\1d"),
    (r"resnest(\d+)$", r"resnest\1e"),
    (r"mobilenet_v2_(\d+).*", r"mobilenetv2_\1"),
    (r"mobilenet_v3_", "mobilenetv3_"),
    (r"efficientnet_v2_", "efficientnetv2_"),
    (r"rexnet_(\d)(\d)$", r"rexnet_\g<1>\g<2>0"),
)
COMMON = {"num_classes": "num_classes", "in_channels": "in_chans"}


def build(manifest: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of a variant of ours and the fields in which the case's network differs from it."""
    case, options = manifest["case"].removeprefix("mindcv_"), manifest["config"]
    common = {"num_classes": 1000} | {COMMON[option]: options[option] for option in options.keys() & COMMON.keys()}
    if options.keys() <= COMMON.keys():
        name = manifest["model"]
        for pattern, ours in VARIANTS:
            name = re.sub(f"^{pattern}", ours, name)
        return name, common
    (kind,) = (kind for kind in BUILDS if case.startswith(kind))
    name, fields = BUILDS[kind](options)
    return name, {**fields, **common}


def places(model: nn.Module, manifest: Mapping[str, Any]) -> list[str]:
    """Where MindCV's levels lie in our network: the paths of the modules whose outputs they are."""
    theirs = [level["name"] for level in manifest["feature_info"]]
    ours = [level.name for level in model.feature_info]
    if len(theirs) == len(ours):
        return ours
    blocks: list[str] = [f"blocks.{stage}" for stage in range(len(model.blocks))]
    if not manifest["case"].startswith("mindcv_efficientnet"):
        blocks = [f"{stage}.{number}" for stage in blocks for number in range(len(model.get_submodule(stage)))]
    head = [] if len(theirs) == len(blocks) + 1 else ["act2"]
    paths = ["act1", *blocks, *head]
    assert len(paths) == len(theirs)
    return paths


def outputs(model: nn.Module, manifest: Mapping[str, Any], x: Tensor) -> dict[str, Tensor]:
    """Logits and maps under MindCV's names."""
    seen: dict[str, Tensor] = {}
    paths = places(model, manifest)
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _, __, y, path=path: seen.update({path: y.clone()}))
        for path in paths
    ]
    logits = model(x)
    for handle in handles:
        handle.remove()
    return {"logits": logits} | {f"feature_{number}": seen[path] for number, path in enumerate(paths)}


@torch.no_grad()
def check_mindcv(folder: Path, manifest: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Name, largest difference and its tolerance of every output of a case, at every size."""
    name, fields = build(manifest)
    path = folder / manifest["checkpoint"]["file"]
    model = featx.create_model(name, checkpoint_path=path, **fields).eval()
    extractor = featx.create_model(name, features_only=True, checkpoint_path=path, **fields).eval()
    rows: list[tuple[str, float, float]] = []
    for file, expected in manifest["outputs"].items():
        golden = load_file(folder / file)
        found = outputs(model, manifest, golden["input"])
        rows += compared(file, found, golden, expected)
        if len(model.feature_info) == len(manifest["feature_info"]):
            maps = extractor(golden["input"])
            found = {f"feature_{number}": map_ for number, map_ in enumerate(maps)}
            rows += compared(f"{file}, extractor", found, golden, {output: expected[output] for output in found})
    return rows


def compared(
    where: str, found: Mapping[str, Tensor], golden: Mapping[str, Tensor], expected: Mapping[str, Any]
) -> Iterator[tuple[str, float, float]]:
    for output, facts in expected.items():
        difference = found[output] - golden[output]
        assert found[output].shape == golden[output].shape
        yield f"{output} ({where})", difference.abs().max().item(), facts["suggested_tolerance"]["atol"]

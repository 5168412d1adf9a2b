"""Compare featx with outputs that other programs computed: `python tests/check_golden.py FOLDER`.

FOLDER is a case, or holds cases. A case is a folder with the program's own checkpoint, `manifest.json`, and per size of
images a safetensors file with the input and the outputs. Every output must be within the tolerance that the manifest
states; a case of a program that SYSTEMS does not list fails. Exits with 1 if anything does.
"""

# ruff: noqa: T201 (a command prints)

import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from check_golden_mindcv import build, outputs
from safetensors.torch import load_file
from torch import Tensor, nn

import featx
from featx.cvnets import endpoints
from featx.heads import DeepLabV3Config, LinearConfig, PSPNetConfig, Segmenter
from featx.models.layers.stage_table import BLOCK_TYPES

# Images (N, C, H, W), as the program was fed them, to outputs under the program's names.
Run = Callable[[Tensor], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Case:
    """A folder and what its manifest says."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest["config"]

    @property
    def checkpoint(self) -> Path:
        return self.folder / self.manifest["checkpoint"]["file"]

    def classes(self, output: str) -> int:
        """Channels of an output, from its shape in the first file; 0 if the case does not have it."""
        outputs = next(iter(self.manifest["outputs"].values()))
        return outputs[output]["shape"][-1] if output in outputs else 0


@dataclass(frozen=True, slots=True)
class Row:
    """An output of one file: the largest difference, what is tolerated, and why it fails."""

    case: str
    file: str
    output: str
    difference: float = 0.0
    tolerance: float = 0.0
    failure: str = ""


def cvnets(case: Case) -> Run:
    config = case.config
    size = {"xx_small": "xxs", "x_small": "xs", "small": "s"}
    if config["model.classification.name"] == "mobilevit":
        name, arch = f"mobilevit_{size[config['model.classification.mit.mode']]}", {}
    else:
        name = "mobilevitv2_100"
        arch = {"width_multiplier": config["model.classification.mitv2.width_multiplier"]}
    arch["output_stride"] = config.get("model.segmentation.output_stride", config.get("output_stride"))
    extractor = featx.create_model(name, features_only=True, checkpoint_path=case.checkpoint, **arch).eval()
    segmenter = segmented(case, name, arch)
    classes = config.get("model.classification.n_classes")
    alone = "model.segmentation.seg_head" not in config
    arch["num_classes"] = classes
    model = featx.create_model(name, checkpoint_path=case.checkpoint, **arch).eval() if alone else None
    flip = case.manifest["inputs"][0]["channel_order"].startswith("BGR")  # our models take RGB

    def run(x: Tensor) -> dict[str, Tensor]:
        x = x.flip(1) if flip else x
        outputs = endpoints(extractor, x, use_l5_exp=True)
        if segmenter is not None:
            outputs |= {"seg_out": segmenter(x), "seg_head.classifier": segmenter.forward_coarse(x)}
        return outputs if model is None else {**outputs, "logits": model(x)}

    return run


def segmented(case: Case, backbone: str, arch: dict[str, Any]) -> Segmenter | None:
    """The whole network of a case that has a head of segmentation."""
    config = {name.rpartition(".")[2]: value for name, value in case.config.items() if "segmentation" in name}
    heads = {
        "deeplabv3": DeepLabV3Config(
            config.get("aspp_out_channels", 256), tuple(config.get("aspp_rates", (6, 12, 18)))
        ),
        "pspnet": PSPNetConfig(config.get("psp_out_channels", 512)),
        "simple_seg_head": LinearConfig(),
    }
    if "seg_head" not in config:
        return None
    aux = config.get("use_aux_head", False)
    head, classes = heads[config["seg_head"]], config["n_classes"]
    return featx.create_segmenter(
        head, backbone, num_classes=classes, aux_head=aux, checkpoint_path=case.checkpoint, **arch
    ).eval()


def netspresso(case: Case) -> Run:
    backbone = case.config["architecture"]["backbone"]
    rows = [dict(row) for row in backbone["stage_params"]]
    arch = {"stages": tuple(BLOCK_TYPES[row.pop("block_type")](**row) for row in rows), **backbone["params"]}
    classes = case.manifest["num_classes"]
    model = featx.create_model("mobilevit_s", num_classes=classes, checkpoint_path=case.checkpoint, **arch).eval()
    pooled = featx.create_model("mobilevit_s", num_classes=0, checkpoint_path=case.checkpoint, **arch).eval()
    places = {"backbone.patch_embed": "stem", "backbone.conv_1x1_exp": "final_conv"}
    places |= {f"backbone.encoder.blocks.{number}": f"stages.{number}" for number in range(len(rows))}

    def run(x: Tensor) -> dict[str, Tensor]:
        maps = {f"hook:{theirs}": output_of(model, ours, x) for theirs, ours in places.items()}
        return {**maps, "last_feature": pooled(x), "pred": model(x)}

    return run


def output_of(model: nn.Module, path: str, x: Tensor) -> Tensor:
    """What the module at that path returns while the model runs."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_hook(lambda _, __, output: seen.append(output))
    model(x)
    handle.remove()
    return seen[0]


def vit(case: Case, **arch: Any) -> Run:
    config = case.config
    if "mlp_ratio" in config:
        arch["mlp_ratio"] = config["mlp_ratio"]
    model = featx.create_model(
        f"vit_tiny_patch{config['patch_size']}_224",
        dim=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        image_size=config.get("img_size_of_model", config["img_size_of_checkpoint"]),
        checkpoint_path=case.checkpoint,
        **arch,
    ).eval()
    block = re.search(r"blocks\[(\d+)\]", case.manifest["notes"])
    number = int(block[1]) if block else 0
    loss = re.search(r"loss = (\w+)(?:\[:, *0\])?\.sum\(\)", case.manifest["notes"])

    def run(x: Tensor) -> dict[str, Tensor]:
        with torch.enable_grad(), featx.capture_attention(model, [number], gradients=True) as attention:
            tokens = model.forward_features(x)
            outputs = {"tokens": tokens, "pos_embed_after_load": model.pos_embed}
            outputs |= {"head_logits": model.forward_head(tokens)} if arch["num_classes"] else {}
            outputs["output"] = tokens  # what the notes call what the model returns
            summed = outputs[loss[1]] if loss else tokens
            (summed[:, 0] if loss and "[" in loss[0] else summed).sum().backward()
        (map_,), (gradients,) = attention.maps.values(), attention.gradients.values()
        return {**outputs, "attention_map": map_, "attn_gradients": gradients}

    return run


def blip(case: Case) -> Run:
    return vit(case, num_classes=0, antialias=False)


def flax(case: Case) -> Run:
    return vit(case, num_classes=case.classes("head_logits"))


def mindcv(case: Case) -> Run:
    name, fields = build(case.manifest)
    model = featx.create_model(name, checkpoint_path=case.checkpoint, **fields).eval()
    return lambda x: outputs(model, case.manifest, x)


# First word of `system` in the manifest, and what builds our model of such a case.
SYSTEMS: dict[str, Callable[[Case], Run]] = {
    "CVNets": cvnets,
    "NetsPresso": netspresso,
    "BLIP": blip,
    "Flax": flax,
    "MindCV": mindcv,
}


def check(folder: Path) -> Iterator[Row]:
    """One row per output of a case; one alone if nothing can be compared."""
    case = Case(folder, json.loads((folder / "manifest.json").read_text()))
    system = case.manifest["system"].split()[0]
    if system not in SYSTEMS:
        yield Row(folder.name, "", "", failure=f"{system} is not supported")
        return
    try:
        run = SYSTEMS[system](case)
    except featx.FeatxError as error:
        yield Row(folder.name, "", "", failure=f"{type(error).__name__}: {error}")
        return
    for file, expected in case.manifest["outputs"].items():
        with torch.no_grad():
            tensors = load_file(folder / file)
            outputs = run(tensors["input"])
        for name, facts in expected.items():
            yield compared(Row(folder.name, file, name), outputs, tensors[name], facts["suggested_tolerance"]["atol"])


def compared(row: Row, outputs: dict[str, Tensor], expected: Tensor, tolerance: float) -> Row:
    case, file, name = row.case, row.file, row.output
    if name not in outputs:
        return Row(case, file, name, failure="not computed")
    if outputs[name].shape != expected.shape:
        return Row(case, file, name, failure=f"shape {tuple(outputs[name].shape)}, not {tuple(expected.shape)}")
    difference = (outputs[name] - expected).abs().max().item()
    failure = "" if difference <= tolerance else "too large"  # NaN is not smaller
    return Row(case, file, name, difference, tolerance, failure)


def main(folder: Path) -> int:
    """Print the table; the exit status."""
    cases = (
        [folder] if (folder / "manifest.json").exists() else sorted(p.parent for p in folder.glob("*/manifest.json"))
    )
    if not cases:
        print(f"{folder} holds no case")
        return 1
    failures = 0
    print(f"{'case':36} {'file':26} {'output':32} {'difference':>10} {'tolerance':>10}")
    for case in cases:
        for row in check(case):
            verdict = f"FAILED: {row.failure}" if row.failure else "ok"
            numbers = f"{row.difference:10.1e} {row.tolerance:10.1e}" if row.tolerance else " " * 21
            print(f"{row.case:36} {row.file:26} {row.output:32} {numbers} {verdict}")
            failures += bool(row.failure)
    print(f"{len(cases)} cases, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))

"""Write the tables of docs/places.md: the image sizes at which each model passes the spatial alignment check.

Run `python docs/places.py` for all sections, or name some: `python docs/places.py transformers`. It uses one thread;
the tests `test_place_proof.py` and `test_*alignment.py` run the same check.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

import torch
from torch import nn

import featx
from featx import FeatureExtractWrapper, FeatxError
from featx.contract import Size
from featx.place_proof import misplaced, proof_sizes

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
PAGE = Path(__file__).with_suffix(".md")
MARK = "<!-- section {} -->\n"
OBLONG: tuple[Size, ...] = ((192, 256), (256, 192))  # for models of timm that are built for one size

# The smallest architecture of each file of timm; together they cover every type of feature wrapper in timm.
# fmt: off
TIMM = (
    "beit_base_patch16_224", "eca_halonext26ts", "test_byobnet", "cait_xxs24_224", "coat_tiny", "convit_tiny",
    "convmixer_768_32", "test_convnext", "cpubone_nano", "crossvit_tiny_240", "csatv2", "cs3darknet_focus_s",
    "cspnext_tiny", "davit_tiny", "deepseek_vit_412m", "deit_tiny_patch16_224", "densenet121", "dla34", "dpn68",
    "edgenext_x_small", "efficientformer_l1", "efficientformerv2_s0", "test_efficientnet", "efficientvim_m1",
    "efficientvit_b0", "efficientvit_m0", "eva02_tiny_patch14_224", "fasternet_t0", "fastvit_s12", "focalnet_tiny_srf",
    "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224",
    "sam2_hiera_tiny", "hrnet_w18_small", "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3",
    "inception_v4", "lcnetv2_small", "levit_384_s8", "lowformer_b0", "test_mambaout", "test_coatnet", "caformer_s18",
    "mixer_s16_224", "mobilenetv3_small_050", "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny",
    "naflexvit_base_patch16_siglip", "nasnetalarge", "nest_tiny", "nextvit_small", "test_nfnet", "pit_xs_224",
    "pnasnet5large", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_004_tv", "repghostnet_050", "repvit_m1",
    "res2net50_26w_4s", "resnest26d", "test_resnet", "resnetv2_18", "rexnet_100", "selecsls42", "legacy_seresnet18",
    "sequencer2d_s", "shvit_s1", "skresnet18", "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256", "swinv2_cr_tiny_224", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m",
    "twins_svt_small", "vgg11", "visformer_tiny", "test_vit", "vit_tiny_r_s16_p8_224", "test_vit_relpos",
    "samvit_base_patch16", "vitamin_small_224", "volo_d1_224", "ese_vovnet19b_slim_dw", "xception", "xception41",
    "xcit_nano_12_p8_224",
)
# fmt: on


@dataclass(frozen=True, slots=True)
class AlignmentResult:
    """Result of a model.

    Attributes:
        sizes: image sizes (height, width) at which it passes.
        problems: its misaligned levels, or the reason why it cannot be checked.
    """

    name: str
    sizes: tuple[Size, ...] = ()
    problems: tuple[str, ...] = ()


def check(name: str, model: nn.Module) -> AlignmentResult:
    """Run the spatial alignment check on a model with random weights."""
    try:
        extractor = FeatureExtractWrapper(model)
        sizes = proof_sizes(extractor)
        problems = misplaced(extractor, sizes) if sizes else ["no size at which every map has two cells along a side"]
    except FeatxError as error:
        return AlignmentResult(name, (), (str(error).partition("\n")[0],))
    return AlignmentResult(
        name, tuple(size for size in sizes if not any(f"{size[0]}x{size[1]}" in p for p in problems)), (*problems,)
    )


def native(name: str) -> AlignmentResult:
    """Check a variant of featx, without repeated blocks."""
    from support.truncation import make_shallow, narrow

    model = featx.create_model(name, **narrow(name))
    make_shallow(model)
    return check(name, model)


def torchvision(name: str) -> AlignmentResult:
    from featx.bridges import torchvision as bridge

    return check(name, bridge.build(name))


def timm(name: str) -> AlignmentResult:
    """Check an architecture of timm; one that accepts a single size is also built for a wide and a tall size."""
    from featx.bridges import timm as bridge

    row = check(name, bridge.build(name))
    if len(row.sizes) + len(row.problems) != 1:
        return row
    for size in OBLONG:
        try:
            model = bridge.build(name, image_size=size)
        except FeatxError:
            continue
        oblong = check(name, model)
        row = AlignmentResult(name, row.sizes + oblong.sizes, row.problems + oblong.problems)
    return row


def transformers(name: str) -> AlignmentResult:
    """Check a model type of transformers in a tiny configuration."""
    from support.transformers_types import EVERY

    from featx.bridges import transformers as bridge

    return check(name, bridge.build(name, **EVERY[name][0]))


def transformers_names() -> list[str]:
    from support.transformers_types import EVERY

    return [*EVERY]


def torchvision_names() -> list[str]:
    from featx.bridges import torchvision as bridge

    return bridge.names()


# By section: function that lists the names, function that checks one.
SECTIONS: dict[str, tuple[Callable[[], Sequence[str]], Callable[[str], AlignmentResult]]] = {
    "featx": (featx.list_models, native),
    "torchvision": (torchvision_names, torchvision),
    "timm": (lambda: TIMM, timm),
    "transformers": (transformers_names, transformers),
}


def section(package: str, rows: Iterable[AlignmentResult]) -> Iterator[str]:
    """Yield a table of models grouped by their results."""
    yield f"\n## {package}" + ("" if package == "featx" else f" {version(package)}") + "\n\n"
    yield "| sizes | models | count | problems |\n| --- | --- | ---: | --- |\n"
    for (_, sizes, problems), group in groupby(sorted(rows, key=group_key), key=group_key):
        names = [row.name for row in group]
        yield f"| {sizes} | {', '.join(f'`{name}`' for name in names)} | {len(names)} | {problems} |\n"


def group_key(row: AlignmentResult) -> tuple[int, str, str]:
    """Return the number of sizes, the sizes and the problems, the last two as text of the table."""
    sizes = ", ".join(f"{height}×{width}" for height, width in row.sizes)
    return len(row.sizes), sizes or "none", "<br>".join(problem.replace("|", "/") for problem in row.problems)


def main(packages: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for package in packages or SECTIONS:
        names, row = SECTIONS[package]
        write(package, [row(name) for name in names()])


def write(package: str, rows: Iterable[AlignmentResult]) -> None:
    """Replace the section of a package in the page."""
    before, _, after = PAGE.read_text(encoding="utf-8").partition(MARK.format(package))
    rest = "".join(after.partition("<!-- section")[1:])
    PAGE.write_text(before + MARK.format(package) + "".join(section(package, rows)) + "\n" + rest, encoding="utf-8")


if __name__ == "__main__":
    torch.manual_seed(0)
    main(sys.argv[1:])

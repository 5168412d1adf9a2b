"""`featx show`: its figures, output and errors."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data
from support.cli import runner

import featx
import featx.cli
from featx.commands import show, show_figures

RESNET = ("--model", "resnet18", "--random-weights", "0", "--size", "64")
VIT = ("--model", "vit_tiny_patch16_224", "--random-weights", "0", "--size", "64")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs `featx show` within this process."""
    return runner(monkeypatch, capsys, "show")


@pytest.fixture(scope="session")
def cat(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "cat.png"
    Image.fromarray(data.chelsea()[::3, ::3]).save(path)
    return path


@pytest.fixture(scope="session")
def cup(cat) -> Path:
    Image.fromarray(data.coffee()[::4, ::4]).save(cat.with_name("<b>кофе & co.jpg"))
    return cat.with_name("<b>кофе & co.jpg")


@pytest.fixture
def figures(monkeypatch):
    """The figures that a command saves, instead of files."""
    kept = []
    monkeypatch.setattr(featx.viz, "save_figure", lambda figure, path: kept.append(figure))
    return kept


def captions(figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.get_images() and axis.get_title()]


@pytest.mark.parametrize(
    ("model", "words", "title", "panels"),
    [
        (RESNET, ["--what", "norms", "--out-indices", "layer3,layer1"], "norms", ["layer3", "layer1"]),
        (RESNET, ["--what", "norms", "--out-indices", "-1, 0"], "norms", ["layer4", "act1"]),
        (RESNET, ["--what", "similarity", "--out-indices", "2"], "similarity to the cell at the cross", ["layer2"]),
        (VIT, ["--what", "attention"], "attention of the class token", ["blocks.11"] * 4),
        (VIT, ["--what", "attention", "--blocks", "0,-2"], "attention of the class token", ["blocks.0", "blocks.10"]),
        (VIT, ["--what", "attention", "--blocks", "blocks.3,5"], None, ["blocks.3", "blocks.5"]),
        (VIT, ["--what", "attention", "--point", "0,1", "--blocks", "0,1"], "of the patch at the cross", None),
        (VIT, ["--what", "rollout"], "attention rollout of", ["rollout through 12 blocks, blocks.0 to blocks.11"]),
        (VIT, ["--what", "rollout", "--blocks", "2,3"], None, ["rollout through 2 blocks, blocks.2 to blocks.3"]),
        (RESNET, ["--what", "gradcam", "--target", "7"], "GradCAM for class 7, probability 0.00", ["layer4"]),
        (RESNET, ["--what", "gradcam", "--out-indices", "2,3"], "GradCAM for class", ["layer2", "layer3"]),
        (VIT, ["--what", "gradcam", "--blocks", "-1"], "GradCAM for class", ["blocks.11"]),
        (VIT, ["--what", "gradcam", "--out-indices", "10"], "GradCAM for class", ["blocks.10"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_picture_shows_what_was_asked_for(run, cat, figures, model, words, title, panels):
    ran = run(cat, *model, *words, "--out", "a.png")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == f"a.png: {words[1]} of {cat} by {model[1]}, weights: random, seed 0\n"
    (figure,) = figures
    assert title is None or title in figure.get_suptitle().replace("\n", " ")
    assert "weights: random, seed 0" in figure.get_suptitle().replace("\n", " ")
    shown = captions(figure)
    assert shown[0].startswith("photograph")
    assert panels is None or [caption.split("\n")[0] for caption in shown[1:]] == panels


def test_channels_are_of_the_deepest_level(run, cat, figures):
    assert run(cat, *RESNET, "--what", "channels", "--out", "a.png").status == 0
    assert "of layer4, 512 channels · 1/32" in figures[0].get_suptitle().replace("\n", " ")


def test_gradcam_explains_the_likeliest_class(run, cat, figures):
    run(cat, *RESNET, "--what", "gradcam", "--out", "a.png")
    torch.manual_seed(0)
    model = featx.create_model("resnet18").eval()
    with torch.no_grad():
        likeliest = model(featx.transform_whole(model, size=64)(Image.open(cat))[None]).argmax().item()
    assert f"GradCAM for class {likeliest}," in figures[0].get_suptitle()
    (heat,) = [axis.get_images()[-1].get_array() for axis in figures[0].axes if axis.get_title().startswith("layer4")]
    expected = featx.explain.gradcam(
        model, featx.transform_whole(model, size=64)(Image.open(cat))[None], "layer4", likeliest
    )[0]
    assert torch.allclose(torch.from_numpy(heat.filled()), expected, rtol=1e-4)  # single precision


def test_a_class_is_named_where_names_are_known(run, cat, figures, monkeypatch):
    create, names = featx.create_model, tuple(f"kind {i}" for i in range(1000))

    def named(*args, **words):
        model = create(*args, **words)
        model.label_names = names
        return model

    monkeypatch.setattr(featx, "create_model", named)
    run(cat, *RESNET, "--what", "gradcam", "--target", "3", "--out", "a.png")
    assert "GradCAM for class 3 (kind 3)," in figures[0].get_suptitle()


def test_models_are_compared_in_rows(run, cat, figures):
    ran = run(cat, *RESNET, "--compare", "vit_tiny_patch16_224", "--out-indices", "1,-1", "--out", "a.png")
    assert ran.out == f"a.png: maps of {cat} by resnet18, vit_tiny_patch16_224, weights: random, seed 0\n"
    first = [caption.split("\n")[0] for caption in captions(figures[0])]
    assert first == ["resnet18", "layer1", "layer4", "vit_tiny_patch16_224", "blocks.1", "blocks.11"]


@pytest.fixture
def fixed_size(monkeypatch):
    """Models seem to take images of 64x64 pixels alone."""
    monkeypatch.setattr(featx.backbone.Pyramid, "fixed_size", (64, 64))


def test_a_photograph_is_cut_for_a_model_of_one_size_and_it_is_reported(run, cat, figures, fixed_size):
    ran = run(cat, *RESNET[:4], "--compare", "vit_tiny_patch16_224", "--out-indices", "-1", "--out", "a.png")
    assert ran.out.splitlines()[1] == f"{cat}: cut to 100×100 pixels, because a model does not take every size"
    pictures = [axis.get_images()[0].get_array().shape for axis in figures[0].axes if axis.get_images()]
    assert pictures == [(100, 100, 3), (2, 2, 3), (100, 100, 3), (4, 4, 3)]


# reports


def test_a_report_holds_all_photographs(run, tmp_path, cat, cup):
    ran = run(cat, cup, *RESNET, "--out-indices", "2,3", "--out", tmp_path / "r.html")
    assert ran.out == f"{tmp_path}/r.html: 2 maps of 2 photographs by resnet18, weights: random, seed 0\n"
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert re.findall(r"<h2>(.*)</h2>", page) == [str(cat), f"{cup.parent}/&lt;b&gt;кофе &amp; co.jpg"]
    assert page.count("data:image/png;base64,") == 2
    assert "<td>2</td><td>layer2</td><td>128</td><td>1/8</td>" in page
    assert "<p>weights: random, seed 0</p>" in page


def test_the_maps_of_a_report_share_their_colors(run, cat, cup, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(show_figures, "maps_grid", lambda *_, basis, **__: drawn.append(basis))
    monkeypatch.setattr(featx.viz.html_report, "png_of", lambda figure: b"")
    run(cat, cup, *RESNET, "--out-indices", "2", "--out", tmp_path / "r.html")
    assert drawn[0] is drawn[1] is not None


def test_a_report_of_one_photograph_has_a_picture_per_level(run, tmp_path, cat):
    ran = run(cat, *RESNET, "--what", "channels", "--out-indices", "3,4", "--out", tmp_path / "r.HTML")
    assert ran.status == 0
    assert (tmp_path / "r.HTML").read_text(encoding="utf-8").count("<img ") == 2


# refusals


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*RESNET, "--what", "attention"], "resnet18: FeatureExtractWrapper has no attention among tokens"),
        ([*RESNET, "--what", "rollout"], "resnet18: FeatureExtractWrapper has no attention among tokens"),
        (
            [*VIT, "--what", "attention", "--blocks", "12"],
            "there is no block 12. Those with attention are:\n  0: ",
        ),
        (
            [*VIT, "--what", "gradcam"],
            "no patch of blocks.11 speaks for the class, which is read from the class token: choose an earlier level",
        ),
        ([*RESNET, "--what", "gradcam", "--target", "1000"], "--target 1000: resnet18 has classes 0 to 999"),
        ([*RESNET, "--what", "gradcam", "--out-indices", "1", "--blocks", "1"], "gradcam explains maps or attention"),
        (
            [*RESNET, "--out-indices", "layer9"],
            "no level is named ['layer9']. Choose distinct levels among:\n  0: act1",
        ),
        ([*RESNET, "--out-indices", "1,layer3"], "no level is named ['1']"),  # a number among names is a name
        ([*RESNET, "--out-indices", "5"], "there is no level 5. Choose distinct levels among:\n  0: act1"),
        ([*RESNET, "--what", "similarity", "--point", "1.2,0.5"], "point=(1.2, 0.5) is outside of the photograph"),
        ([*RESNET, "--what", "similarity", "--point", "1.2"], "--point 1.2: expected X,Y, shares of"),
        ([*RESNET, "--what", "similarity", "--point", "a,b"], "--point a,b: expected X,Y, shares of"),
        ([*RESNET, "--what", "norms", "--point", "0,0"], "--what norms reads --out-indices, not --point"),
        (
            [*RESNET, "--target", "3", "--blocks", "1"],
            "--what maps reads --out-indices, --compare, not --blocks, --target",
        ),
        (
            [*RESNET, "--what", "attention", "--out-indices", "1"],
            "--what attention reads --blocks, --point, not --out-indices",
        ),
        (
            [*RESNET, "--what", "channels", "--out-indices", "1,2"],
            "a picture per level: choose one, or a report for 2",
        ),
        (
            [*RESNET[:2], "--checkpoint-path", "a.pt", "--compare", "vit_tiny_patch16_224"],
            "does not fit several models",
        ),
    ],
    ids=lambda value: " ".join(value[6:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_reported(run, cat, tmp_path, words, message):
    ran = run(cat, *words, "--out", tmp_path / "a.png")
    assert ran.status == 2
    assert ran.err.startswith("error: ")
    assert message in ran.err
    assert not list(tmp_path.iterdir())


def test_several_photographs_do_not_fit_a_picture(run, cat, cup, tmp_path):
    ran = run(cat, cup, *RESNET, "--out", tmp_path / "a.png")
    assert ran.status == 2
    assert ran.err == (
        f"error: a picture is of one photograph; name a report for several, such as --out {tmp_path}/a.html\n"
    )


def test_a_wrong_ending_is_refused_before_weights_are_looked_for(run, cat, monkeypatch):
    monkeypatch.setattr(show, "_load", None)
    ran = run(cat, "--model", "resnet18", "--out", "a.xyz")
    assert "error: a.xyz: name a picture that ends with one of " in ran.err


def test_a_model_without_classes_has_no_gradcam(run, cat, tmp_path, monkeypatch):
    create = featx.create_model
    monkeypatch.setattr(featx, "create_model", lambda *args, **words: create(*args, **words, num_classes=0))
    ran = run(cat, *RESNET, "--what", "gradcam", "--out", tmp_path / "a.png")
    assert ran.err == "error: gradcam explains a class, and resnet18 has no classifier: choose another model\n"


def test_the_photograph_that_cannot_be_opened_is_named(run, cat, tmp_path):
    shutil.copy(cat, tmp_path / "cat.png")
    (tmp_path / "cut.png").write_bytes(cat.read_bytes()[:500])
    ran = run(tmp_path / "cat.png", tmp_path / "cut.png", *RESNET, "--out", tmp_path / "r.html")
    assert ran.err.startswith(f"error: {tmp_path}/cut.png: ")


def test_a_folder_of_photographs_becomes_a_report(run, cat, tmp_path):
    report = tmp_path / "a.html"
    ran = run(cat.parent, *RESNET[:4], "--out-indices", "-1", "--out", report)
    assert ran.status == 0, ran.err
    assert ran.out.startswith(f"{report}: ")
    assert report.stat().st_size > 0


def test_a_photograph_of_any_aspect_is_shown_by_a_model_whose_patches_must_fit(run, cat, figures, monkeypatch):
    from featx.bridges import timm as bridge

    built = bridge.build
    monkeypatch.setattr(bridge, "build", lambda name, **arch: built(name, **arch, depths=(1, 1, 2, 1)))
    model = ("--model", "timm/swin_tiny_patch4_window7_224", "--random-weights", "0", "--size", "50")
    ran = run(cat, *model, "--out-indices", "0", "--out", "a.png")
    assert ran.status == 0, ran.err
    assert len(figures) == 1

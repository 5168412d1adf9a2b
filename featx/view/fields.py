"""The fields of the page. Needs gradio."""

from dataclasses import dataclass
from typing import Any, Self

import gradio as gr

from ..features import Levels
from ..registry import list_models
from .choice import LARGEST_SEED, Values, facts
from .session import Parts, Session, What, usual
from .upload import MIB, Limits

FIRST = "vit_small_patch16_224"
SIZES = [("as the weights expect", 0), *((f"{side} pixels", side) for side in (128, 192, 224, 256, 320, 384, 512))]
WELCOME = "Drop a photograph to begin."
HOUR = 3600  # seconds after which what a visitor left is forgotten


@dataclass(frozen=True, slots=True)
class Fields:
    """The components that a visitor sees, and the session behind them."""

    session: gr.State
    name: gr.Dropdown
    values: gr.Radio
    seed: gr.Number
    checkpoint: gr.Textbox
    size: gr.Dropdown
    upload: gr.File
    photograph: gr.Image
    what: gr.Radio
    levels: gr.CheckboxGroup
    level: gr.Dropdown
    block: gr.Dropdown
    message: gr.Markdown
    picture: gr.Image
    code: gr.Code

    @property
    def model(self) -> list[Any]:
        """What `handlers.asked` takes, in its order."""
        return [self.name, self.values, self.seed, self.checkpoint, self.size, self.what]

    @property
    def answer(self) -> list[Any]:
        return [self.picture, self.message, self.code]

    @property
    def parts(self) -> list[Any]:
        """Those of the parts of a model."""
        return [self.levels, self.level, self.block]

    @classmethod
    def laid_out(cls, limits: Limits, remote: bool) -> Self:
        """Within a Blocks: two columns, the model and the photograph, and the picture."""
        levels, blocks = facts(FIRST)
        first = usual(levels, blocks)
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                left = [*_model(remote), *_photograph(limits)]
            with gr.Column(scale=2, min_width=320):
                right = [*_parts(levels, blocks, first), *_answer()]
        return cls(gr.State(Session(parts=first), time_to_live=HOUR), *left, *right)


def _model(remote: bool) -> list[Any]:
    name = gr.Dropdown(
        list_models(features_only=True), value=FIRST, label="Model", allow_custom_value=not remote, elem_id="model"
    )
    kinds = [value for value in Values if not (remote and value is Values.checkpoint)]
    values = gr.Radio([str(kind) for kind in kinds], value="published", label="Weights", elem_id="weights")
    seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LARGEST_SEED, visible=False, elem_id="seed")
    checkpoint = gr.Textbox(
        label="Checkpoint",
        placeholder="file, folder, URL or hf-hub:owner/repo, then Enter",
        visible=False,
        elem_id="checkpoint",
    )
    size = gr.Dropdown(SIZES, value=0, label="Shorter side", elem_id="size")
    return [name, values, seed, checkpoint, size]


def _photograph(limits: Limits) -> list[Any]:
    upload = gr.File(label=f"Photograph, up to {limits.nbytes // MIB} MiB", height=130, elem_id="upload")
    photograph = gr.Image(
        label="Click a point", interactive=False, visible=False, format="jpeg", buttons=[], elem_id="photograph"
    )
    return [upload, photograph]


def _parts(levels: Levels, blocks: list[str], first: Parts) -> list[Any]:
    what = gr.Radio([str(what) for what in What], value="maps", show_label=False, container=False, elem_id="what")
    shown = gr.CheckboxGroup(labels(levels), value=list(first.levels), label="Levels", elem_id="levels")
    level = gr.Dropdown(labels(levels), value=first.level, label="Level", visible=False, elem_id="level")
    block = gr.Dropdown(blocks, value=first.block, label="Block", visible=False, elem_id="block")
    return [what, shown, level, block]


def _answer() -> list[Any]:
    message = gr.Markdown(WELCOME, elem_id="message")
    picture = gr.Image(
        show_label=False, interactive=False, format="png", buttons=["download", "fullscreen"], elem_id="picture"
    )
    code = gr.Code(
        language="python", label="The same in Python", interactive=False, elem_id="code", lines=1, visible=False
    )
    return [message, picture, code]


def labels(levels: Levels) -> list[tuple[str, int]]:
    return [(f"{level.name} · 1/{level.reduction}", i) for i, level in enumerate(levels)]

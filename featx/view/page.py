"""The page itself: what is on it, and which function answers to what. Needs gradio."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import FeatxError, ImageError
from ..features import Levels
from ..registry import list_models
from .choice import LARGEST_SEED, Choice, Values, facts, require_published, usual
from .message import public
from .session import Answer, Asked, Models, Session, What, answer, marked
from .upload import Limits, take

FIRST = "vit_small_patch16_224"
SIZES = [("as the weights expect", 0), *((f"{side} pixels", side) for side in (128, 192, 224, 256, 320, 384, 512))]
WELCOME = "Drop a photograph to begin."
HOUR = 3600

CSS = """
#message:has(p) {border: 1px solid var(--border-color-accent); border-radius: var(--radius-lg); padding: 0.8rem 1rem}
#message p {overflow-wrap: anywhere; white-space: pre-line}
#photograph img {cursor: crosshair}
footer {display: none !important}
"""


@dataclass(frozen=True, slots=True)
class Parts:
    """The components that a visitor sees, and the session behind them."""

    session: gr.State
    upload: gr.File
    photograph: gr.Image
    name: gr.Dropdown
    values: gr.Radio
    seed: gr.Number
    checkpoint: gr.Textbox
    size: gr.Dropdown
    what: gr.Radio
    levels: gr.CheckboxGroup
    level: gr.Dropdown
    block: gr.Dropdown
    message: gr.Markdown
    picture: gr.Image
    code: gr.Code

    @property
    def asked(self) -> list[Any]:
        """What `_asked` takes, in its order."""
        model = [self.name, self.values, self.seed, self.checkpoint, self.size]
        return [*model, self.what, self.levels, self.level, self.block]

    @property
    def answer(self) -> list[Any]:
        return [self.picture, self.message, self.code]


def page(limits: Limits, *, remote: bool) -> gr.Blocks:
    """The page. remote: visitors are on other machines, so it opens no file of this one."""
    with gr.Blocks(title="featx view", analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as blocks:
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                left = _left(limits, remote)
            with gr.Column(scale=2, min_width=320):
                right = _right()
        _wire(Parts(gr.State(Session(), time_to_live=HOUR), *left, *right), limits, remote)
    return blocks


def _left(limits: Limits, remote: bool) -> list[Any]:
    mebibytes = limits.nbytes // 2**20
    upload = gr.File(label=f"Photograph, up to {mebibytes} MiB", height=130, elem_id="upload")
    photograph = gr.Image(
        label="Click a point", interactive=False, visible=False, format="jpeg", buttons=[], elem_id="photograph"
    )
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
    return [upload, photograph, name, values, seed, checkpoint, size]


def _right() -> list[Any]:
    levels, blocks = facts(FIRST)
    what = gr.Radio([str(what) for what in What], value="maps", show_label=False, container=False, elem_id="what")
    shown = gr.CheckboxGroup(_labels(levels), value=usual(levels), label="Levels", elem_id="levels")
    level = gr.Dropdown(_labels(levels), value=len(levels) - 1, label="Level", visible=False, elem_id="level")
    block = gr.Dropdown(blocks, value=blocks[-1], label="Block", visible=False, elem_id="block")
    message = gr.Markdown(WELCOME, elem_id="message")
    picture = gr.Image(
        show_label=False, interactive=False, format="png", buttons=["download", "fullscreen"], elem_id="picture"
    )
    code = gr.Code(language="python", label="The same in Python", interactive=False, elem_id="code", lines=1)
    return [what, shown, level, block, message, picture, code]


def _wire(parts: Parts, limits: Limits, remote: bool) -> None:
    """Which function answers to what. One at a time runs a model, whoever asks."""
    models = Models()
    alone: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}

    def draw(session: Session, *fields: Any) -> tuple[Any, ...]:
        if session.photograph is None:
            return gr.skip(), gr.skip(), gr.skip()
        return _answered(answer(session, models, _asked(*fields), remote=remote))

    drawing: dict[str, Any] = {
        "fn": draw,
        "inputs": [parts.session, *parts.asked],
        "outputs": parts.answer,
        "show_progress_on": parts.picture,
        "trigger_mode": "always_last",
        **alone,
    }

    def received(file: str | None, session: Session) -> tuple[Any, ...]:
        return _received(file, session, limits)

    def another(name: str) -> tuple[Any, ...]:
        return _another(name, remote)

    controls = [parts.levels, parts.level, parts.block]
    took = [parts.session, parts.upload, parts.photograph, *parts.answer]
    clicked = [parts.session, parts.photograph, parts.what, *controls]
    steps = [  # what happens before the picture is drawn anew
        (parts.upload.upload, received, [parts.upload, parts.session], took),
        (parts.name.input, another, [parts.name], [*controls, *parts.answer]),
        (parts.values.input, _kind, [parts.values], [parts.seed, parts.checkpoint]),
        (parts.what.input, _controls, [parts.what], controls),
        (parts.photograph.select, _clicked, [parts.session, parts.what], clicked),
    ]
    for event, function, inputs, outputs in steps:
        event(function, inputs, outputs, show_progress="hidden", **alone).success(**drawing)
    for event in (parts.seed.input, parts.checkpoint.submit, parts.size.input, *(part.input for part in controls)):
        event(**drawing)


def _asked(
    name: str,
    values: str,
    seed: float | None,
    checkpoint: str,
    size: int,
    what: str,
    levels: list[int],
    level: int | None,
    block: str | None,
) -> Asked:
    """What the fields say, in the order of `Parts.asked`."""
    choice = Choice(
        name or "",
        Values(values),
        int(seed or 0) if values == Values.random else 0,
        checkpoint.strip() if values == Values.checkpoint else "",
    )
    return Asked(choice, What(what), tuple(sorted(levels)), -1 if level is None else level, block, size or None)


def _received(file: str | None, session: Session, limits: Limits) -> tuple[Any, ...]:
    """The photograph that was uploaded, or why it is refused; the field is empty for the next one either way."""
    reason = ""
    try:
        session.show(take(Path(file), limits) if file else None)
    except ImageError as error:
        session.show(None)
        reason = f"This photograph is refused: {public(error)}."
    shown = gr.Image(marked(session), visible=session.photograph is not None)
    return session, None, shown, None, reason, ""


def _another(name: str, remote: bool) -> tuple[Any, ...]:
    """The levels and blocks of another model, or why there are none."""
    try:
        if remote:
            require_published(Choice(name))
        levels, blocks = facts(name)
    except FeatxError as error:
        nothing = gr.CheckboxGroup([], value=[]), gr.Dropdown([], value=None), gr.Dropdown([], value=None)
        return *nothing, None, public(error), ""
    labels = _labels(levels)
    return (
        gr.CheckboxGroup(labels, value=usual(levels)),
        gr.Dropdown(labels, value=len(levels) - 1),
        gr.Dropdown(blocks, value=blocks[-1] if blocks else None),
        gr.skip(),
        gr.skip(),
        gr.skip(),
    )


def _kind(values: str) -> tuple[Any, ...]:
    """The field that the kind of weights needs."""
    return gr.Number(visible=values == Values.random), gr.Textbox(visible=values == Values.checkpoint)


def _controls(what: str) -> tuple[Any, ...]:
    """The fields that the picture needs: levels, level, block."""
    return (
        gr.CheckboxGroup(visible=what in (What.maps, What.norms)),
        gr.Dropdown(visible=what in (What.channels, What.similarity)),
        gr.Dropdown(visible=what == What.attention),
    )


def _clicked(session: Session, what: str, event: gr.SelectData) -> tuple[Any, ...]:
    """The point clicked, and a picture that depends on it."""
    shown = marked(session)
    if shown is not None:
        session.point = event.index[0] / shown.width, event.index[1] / shown.height
    what = what if what == What.attention else What.similarity
    return session, marked(session), str(what), *_controls(what)


def _answered(answer: Answer) -> tuple[Any, ...]:
    return answer.picture, answer.message, answer.code


def _labels(levels: Levels) -> list[tuple[str, int]]:
    return [(f"{level.name} · {level.chs} channels · 1/{level.reduction}", i) for i, level in enumerate(levels)]

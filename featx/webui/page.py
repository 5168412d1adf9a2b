"""The gradio page: its components, event handlers, and the connections between them."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import gradio as gr

from ..errors import FeatxError, ImageError
from ..features import Levels
from ..registry import list_models
from ..viz.cell_similarity import Point
from .guard import MIB, Limits, open_upload
from .model_choice import LARGEST_SEED, ModelChoice, WeightsKind, levels_and_blocks, require_published
from .session import (
    Answer,
    ModelParts,
    Models,
    PictureKind,
    PictureRequest,
    Session,
    answer,
    default_parts,
    hide_folders,
    with_marker,
)

FIRST = "vit_small_patch16_224"
SIZES = [("as the weights expect", 0), *((f"{side} pixels", side) for side in (128, 192, 224, 256, 320, 384, 512))]
WELCOME = "Drop a photograph to begin."
HOUR = 3600  # seconds that a session is kept after its visitor left
Update = tuple[Any, ...]
CSS = """
#message:has(p) {border: 1px solid var(--border-color-accent); border-radius: var(--radius-lg); padding: 0.8rem 1rem}
#message p {overflow-wrap: anywhere; white-space: pre-line}
#photograph img {cursor: crosshair}
input:checked {border-color: var(--checkbox-border-color-selected) !important}
input:checked {background-color: var(--checkbox-background-color-selected) !important}
footer {display: none !important}
"""


@dataclass(frozen=True, slots=True)
class Fields:
    """The components of the page, and the visitor's session."""

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
        """The components that `read_controls` reads, in its order."""
        return [self.name, self.values, self.seed, self.checkpoint, self.size, self.what]

    @property
    def answer(self) -> list[Any]:
        return [self.picture, self.message, self.code]

    @property
    def parts(self) -> list[Any]:
        """The components that choose parts of a model."""
        return [self.levels, self.level, self.block]

    @classmethod
    def build(cls, limits: Limits, remote: bool) -> Self:
        """Create the components inside a `gr.Blocks`: one column of controls and one with the picture."""
        levels, blocks = levels_and_blocks(FIRST)
        first = default_parts(levels, blocks)
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
    kinds = [value for value in WeightsKind if not (remote and value is WeightsKind.checkpoint)]
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


def _parts(levels: Levels, blocks: list[str], first: ModelParts) -> list[Any]:
    what = gr.Radio(
        [str(what) for what in PictureKind], value="maps", show_label=False, container=False, elem_id="what"
    )
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


@dataclass(frozen=True, slots=True)
class Handlers:
    """Event handlers. remote: visitors are on other machines."""

    limits: Limits
    remote: bool
    models: Models = field(default_factory=Models)

    def redraw(self, session: Session, *model: Any) -> Update:
        """The updated answer."""
        return self._respond(session, read_controls(session.parts, *model))

    def redraw_at_point(self, session: Session, event: gr.SelectData, *model: Any) -> Update:
        """The updated answer for the point clicked."""
        session.point = point_of(session, event)
        wanted = read_controls(session.parts, *model)
        return self._respond(session, replace(wanted, what=_of_point(wanted.what)))

    def redraw_with(self, part: str, session: Session, chosen: Any, *model: Any) -> Update:
        """The updated answer for another choice of `part`: levels, level or block."""
        session.parts = replace(session.parts, **{part: sorted(chosen) if part == "levels" else chosen})
        return self.redraw(session, *model)

    def receive(self, file: str | None, session: Session) -> Update:
        """The uploaded photograph, or the reason why it is refused. Clears the upload field."""
        reason = ""
        session.show(None)
        try:
            session.show(open_upload(Path(file), self.limits) if file else None)
        except ImageError as error:
            reason = f"This photograph is refused: {hide_folders(error)}."
        shown = gr.Image(with_marker(session), visible=session.photograph is not None)
        return session, None, shown, *_update(Answer(message=reason))

    def change_model(self, session: Session, name: str, *others: Any) -> Update:
        """The levels and blocks of another model, and the updated answer."""
        try:
            if self.remote:
                require_published(ModelChoice(name))
            levels, blocks = levels_and_blocks(name)
        except FeatxError as error:
            nothing = gr.CheckboxGroup([], value=[]), gr.Dropdown([], value=None), gr.Dropdown([], value=None)
            return *nothing, *_update(Answer(message=hide_folders(error)))
        session.parts = first = default_parts(levels, blocks)
        updates = (
            gr.CheckboxGroup(labels(levels), value=list(first.levels)),
            gr.Dropdown(labels(levels), value=first.level),
            gr.Dropdown(blocks, value=first.block),
        )
        return *updates, *self.redraw(session, name, *others)

    def _respond(self, session: Session, wanted: PictureRequest) -> Update:
        if session.photograph is None:
            return gr.skip(), gr.skip(), gr.skip()
        return _update(answer(session, self.models, wanted, remote=self.remote))


def on_click(session: Session, what: str, event: gr.SelectData) -> Update:
    """The photograph with the point marked, and the controls of a picture that depends on the point."""
    session.point = point_of(session, event)
    kept = _of_point(PictureKind(what))
    return with_marker(session), str(kept), *controls(kept)


def point_of(session: Session, event: gr.SelectData) -> Point | None:
    """The point clicked, converted from pixels of the displayed photograph."""
    shown = with_marker(session)
    return (event.index[0] / shown.width, event.index[1] / shown.height) if shown else None


def weights_controls(values: str) -> Update:
    """Visibility of the seed and checkpoint fields for a kind of weights."""
    return gr.Number(visible=values == WeightsKind.random), gr.Textbox(visible=values == WeightsKind.checkpoint)


def controls(what: str) -> Update:
    """Visibility of the levels, level and block fields for a kind of picture."""
    return (
        gr.CheckboxGroup(visible=what in (PictureKind.maps, PictureKind.norms)),
        gr.Dropdown(visible=what in (PictureKind.channels, PictureKind.similarity)),
        gr.Dropdown(visible=what == PictureKind.attention),
    )


def read_controls(
    parts: ModelParts, name: str, values: str, seed: float | None, checkpoint: str, size: int, what: str
) -> PictureRequest:
    """The picture request that the values of `Fields.model` describe."""
    choice = ModelChoice(
        name or "",
        WeightsKind(values),
        int(seed or 0) if values == WeightsKind.random else 0,
        checkpoint.strip() if values == WeightsKind.checkpoint else "",
    )
    return PictureRequest(choice, PictureKind(what), parts, size or None)


def _of_point(what: PictureKind) -> PictureKind:
    return what if what is PictureKind.attention else PictureKind.similarity


def _update(answer: Answer) -> Update:
    message = gr.Markdown(answer.message, visible=bool(answer.message))
    return answer.picture, message, gr.Code(answer.code, visible=bool(answer.code))


def page(limits: Limits, *, remote: bool) -> gr.Blocks:
    """The page. remote: visitors are on other machines, so local files are not opened for them."""
    with gr.Blocks(title="featx view", analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as blocks:
        _wire(Fields.build(limits, remote), Handlers(limits, remote))
    return blocks


def _wire(fields: Fields, handlers: Handlers) -> None:
    """Connect events to handlers. One event at a time runs a model; of several queued events, the last one.

    The chosen parts are kept in the session, not passed as inputs: inputs could still belong to the previous model,
    and gradio rejects such values.
    """
    alone: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
    shown: dict[str, Any] = {"show_progress_on": fields.picture, "trigger_mode": "always_last", **alone}
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    session, model, answer = fields.session, fields.model, fields.answer

    for changed in (fields.values.input, fields.seed.input, fields.size.input, fields.what.input):
        changed(handlers.redraw, [session, *model], answer, **shown)
    fields.checkpoint.submit(handlers.redraw, [session, *model], answer, **shown)
    fields.name.input(handlers.change_model, [session, *model], [*fields.parts, *answer], **shown)
    for part, box in zip(("levels", "level", "block"), fields.parts, strict=True):
        box.input(partial(handlers.redraw_with, part), [session, box, *model], answer, **shown)
    fields.values.input(weights_controls, fields.values, [fields.seed, fields.checkpoint], **quick)
    fields.what.input(controls, fields.what, fields.parts, **quick)

    fields.photograph.select(on_click, [session, fields.what], [fields.photograph, fields.what, *fields.parts], **quick)
    fields.photograph.select(handlers.redraw_at_point, [session, *model], answer, **shown)

    taken = [session, fields.upload, fields.photograph, *answer]
    received = fields.upload.upload(handlers.receive, [fields.upload, session], taken, show_progress="hidden", **alone)
    received.success(handlers.redraw, [session, *model], answer, **shown)

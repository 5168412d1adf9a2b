"""The page: its fields, what it does when a visitor does something, and which function answers what. Needs gradio."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import gradio as gr

from ..errors import FeatxError, ImageError
from ..features import Levels
from ..registry import list_models
from ..viz.cell_similarity import Point
from .choice import LARGEST_SEED, Choice, Values, facts, require_published
from .guard import MIB, Limits, take
from .session import Answer, Asked, Models, Parts, Session, What, answer, marked, public, usual

FIRST = "vit_small_patch16_224"
SIZES = [("as the weights expect", 0), *((f"{side} pixels", side) for side in (128, 192, 224, 256, 320, 384, 512))]
WELCOME = "Drop a photograph to begin."
HOUR = 3600  # seconds after which what a visitor left is forgotten
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
        """What `asked` takes, in its order."""
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


@dataclass(frozen=True, slots=True)
class Handlers:
    """Answers to events. remote: visitors are on other machines."""

    limits: Limits
    remote: bool
    models: Models = field(default_factory=Models)

    def drawn(self, session: Session, *model: Any) -> Update:
        """A new answer."""
        return self._answered(session, asked(session.parts, *model))

    def drawn_at_point(self, session: Session, event: gr.SelectData, *model: Any) -> Update:
        """A new answer that depends on the point clicked."""
        session.point = point_of(session, event)
        wanted = asked(session.parts, *model)
        return self._answered(session, replace(wanted, what=_of_point(wanted.what)))

    def drawn_with(self, part: str, session: Session, chosen: Any, *model: Any) -> Update:
        """A new answer that looks at another part: levels, level or block."""
        session.parts = replace(session.parts, **{part: sorted(chosen) if part == "levels" else chosen})
        return self.drawn(session, *model)

    def received(self, file: str | None, session: Session) -> Update:
        """The photograph that was uploaded, or why it is refused; the field is empty for the next one either way."""
        reason = ""
        session.show(None)
        try:
            session.show(take(Path(file), self.limits) if file else None)
        except ImageError as error:
            reason = f"This photograph is refused: {public(error)}."
        shown = gr.Image(marked(session), visible=session.photograph is not None)
        return session, None, shown, *_update(Answer(message=reason))

    def renamed(self, session: Session, name: str, *others: Any) -> Update:
        """The levels and blocks of another model, and its answer."""
        try:
            if self.remote:
                require_published(Choice(name))
            levels, blocks = facts(name)
        except FeatxError as error:
            nothing = gr.CheckboxGroup([], value=[]), gr.Dropdown([], value=None), gr.Dropdown([], value=None)
            return *nothing, *_update(Answer(message=public(error)))
        session.parts = first = usual(levels, blocks)
        updates = (
            gr.CheckboxGroup(labels(levels), value=list(first.levels)),
            gr.Dropdown(labels(levels), value=first.level),
            gr.Dropdown(blocks, value=first.block),
        )
        return *updates, *self.drawn(session, name, *others)

    def _answered(self, session: Session, wanted: Asked) -> Update:
        if session.photograph is None:
            return gr.skip(), gr.skip(), gr.skip()
        return _update(answer(session, self.models, wanted, remote=self.remote))


def clicked(session: Session, what: str, event: gr.SelectData) -> Update:
    """The photograph with the point marked, and the fields of a picture that depends on it."""
    session.point = point_of(session, event)
    kept = _of_point(What(what))
    return marked(session), str(kept), *controls(kept)


def point_of(session: Session, event: gr.SelectData) -> Point | None:
    """The point clicked, from pixels of the photograph as it is shown."""
    shown = marked(session)
    return (event.index[0] / shown.width, event.index[1] / shown.height) if shown else None


def weighed(values: str) -> Update:
    """The field that the kind of weights needs: seed, checkpoint."""
    return gr.Number(visible=values == Values.random), gr.Textbox(visible=values == Values.checkpoint)


def controls(what: str) -> Update:
    """The fields that the picture needs: levels, level, block."""
    return (
        gr.CheckboxGroup(visible=what in (What.maps, What.norms)),
        gr.Dropdown(visible=what in (What.channels, What.similarity)),
        gr.Dropdown(visible=what == What.attention),
    )


def asked(parts: Parts, name: str, values: str, seed: float | None, checkpoint: str, size: int, what: str) -> Asked:
    """What the fields say, in the order of `Fields.model`."""
    choice = Choice(
        name or "",
        Values(values),
        int(seed or 0) if values == Values.random else 0,
        checkpoint.strip() if values == Values.checkpoint else "",
    )
    return Asked(choice, What(what), parts, size or None)


def _of_point(what: What) -> What:
    return what if what is What.attention else What.similarity


def _update(answer: Answer) -> Update:
    message = gr.Markdown(answer.message, visible=bool(answer.message))
    return answer.picture, message, gr.Code(answer.code, visible=bool(answer.code))


def page(limits: Limits, *, remote: bool) -> gr.Blocks:
    """The page. remote: visitors are on other machines, so it opens no file of this one."""
    with gr.Blocks(title="featx view", analytics_enabled=False, delete_cache=(60, 600), fill_width=True) as blocks:
        _wire(Fields.laid_out(limits, remote), Handlers(limits, remote))
    return blocks


def _wire(fields: Fields, handlers: Handlers) -> None:
    """One event at a time runs a model, whoever asks; of several that wait, the last.

    The parts chosen are in the session, where they are always those of the model chosen last: as inputs of every event
    they could be of the model before, which Gradio refuses.
    """
    alone: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
    shown: dict[str, Any] = {"show_progress_on": fields.picture, "trigger_mode": "always_last", **alone}
    quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    session, model, answer = fields.session, fields.model, fields.answer

    for changed in (fields.values.input, fields.seed.input, fields.size.input, fields.what.input):
        changed(handlers.drawn, [session, *model], answer, **shown)
    fields.checkpoint.submit(handlers.drawn, [session, *model], answer, **shown)
    fields.name.input(handlers.renamed, [session, *model], [*fields.parts, *answer], **shown)
    for part, box in zip(("levels", "level", "block"), fields.parts, strict=True):
        box.input(partial(handlers.drawn_with, part), [session, box, *model], answer, **shown)
    fields.values.input(weighed, fields.values, [fields.seed, fields.checkpoint], **quick)
    fields.what.input(controls, fields.what, fields.parts, **quick)

    fields.photograph.select(clicked, [session, fields.what], [fields.photograph, fields.what, *fields.parts], **quick)
    fields.photograph.select(handlers.drawn_at_point, [session, *model], answer, **shown)

    taken = [session, fields.upload, fields.photograph, *answer]
    received = fields.upload.upload(handlers.received, [fields.upload, session], taken, show_progress="hidden", **alone)
    received.success(handlers.drawn, [session, *model], answer, **shown)

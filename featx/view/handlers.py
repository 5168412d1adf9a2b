"""What the page does when a visitor does something: from the values of its fields to new ones. Needs gradio."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import FeatxError, ImageError
from ..viz.points import Point
from .choice import Choice, Values, facts, require_published
from .fields import labels
from .message import public
from .session import Answer, Asked, Models, Parts, Session, What, answer, marked, usual
from .upload import Limits, take

Update = tuple[Any, ...]


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

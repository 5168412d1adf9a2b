"""What the page does when a visitor does something: from the values of its fields to new ones. Needs gradio."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import FeatxError, ImageError
from .choice import Choice, Values, facts, require_published, usual
from .message import public
from .parts import labels
from .session import Answer, Asked, Models, Session, What, answer, marked
from .upload import Limits, take

Update = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Handlers:
    """Answers to events. remote: visitors are on other machines."""

    limits: Limits
    remote: bool
    models: Models = field(default_factory=Models)

    def drawn(self, session: Session, *fields: Any) -> Update:
        """A new answer."""
        return self._answered(session, asked(*fields))

    def drawn_at_point(self, session: Session, *fields: Any) -> Update:
        """A new answer that depends on the point."""
        wanted = asked(*fields)
        return self._answered(session, replace(wanted, what=_of_point(wanted.what)))

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

    def renamed(self, session: Session, *fields: Any) -> Update:
        """The levels and blocks of another model, and its answer.

        It does not look at the levels chosen before: gradio would hold them to those of the new model.
        """
        name, *others, what = fields
        try:
            if self.remote:
                require_published(Choice(name))
            levels, blocks = facts(name)
        except FeatxError as error:
            nothing = gr.CheckboxGroup([], value=[]), gr.Dropdown([], value=None), gr.Dropdown([], value=None)
            return *nothing, *_update(Answer(message=public(error)))
        shown, level, block = usual(levels), len(levels) - 1, blocks[-1] if blocks else None
        updates = (
            gr.CheckboxGroup(labels(levels), value=shown),
            gr.Dropdown(labels(levels), value=level),
            gr.Dropdown(blocks, value=block),
        )
        return *updates, *self.drawn(session, name, *others, what, shown, level, block)

    def _answered(self, session: Session, wanted: Asked) -> Update:
        if session.photograph is None:
            return gr.skip(), gr.skip(), gr.skip()
        return _update(answer(session, self.models, wanted, remote=self.remote))


def clicked(session: Session, what: str, event: gr.SelectData) -> Update:
    """The point clicked, and the fields of a picture that depends on it."""
    shown = marked(session)
    if shown is not None:
        session.point = event.index[0] / shown.width, event.index[1] / shown.height
    kept = _of_point(What(what))
    return session, marked(session), str(kept), *controls(kept)


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


def asked(
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


def _of_point(what: What) -> What:
    return what if what is What.attention else What.similarity


def _update(answer: Answer) -> Update:
    message = gr.Markdown(answer.message, visible=bool(answer.message))
    return answer.picture, message, gr.Code(answer.code, visible=bool(answer.code))

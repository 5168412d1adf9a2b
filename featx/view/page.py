"""The page: its parts, and which function answers to what. Needs gradio."""

from functools import partial
from typing import Any

import gradio as gr

from .fields import Fields
from .handlers import Handlers, clicked, controls, weighed
from .upload import Limits

CSS = """
#message:has(p) {border: 1px solid var(--border-color-accent); border-radius: var(--radius-lg); padding: 0.8rem 1rem}
#message p {overflow-wrap: anywhere; white-space: pre-line}
#photograph img {cursor: crosshair}
input:checked {border-color: var(--checkbox-border-color-selected) !important}
input:checked {background-color: var(--checkbox-background-color-selected) !important}
footer {display: none !important}
"""


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
    for part, field in zip(("levels", "level", "block"), fields.parts, strict=True):
        field.input(partial(handlers.drawn_with, part), [session, field, *model], answer, **shown)
    fields.values.input(weighed, fields.values, [fields.seed, fields.checkpoint], **quick)
    fields.what.input(controls, fields.what, fields.parts, **quick)

    fields.photograph.select(clicked, [session, fields.what], [fields.photograph, fields.what, *fields.parts], **quick)
    fields.photograph.select(handlers.drawn_at_point, [session, *model], answer, **shown)

    taken = [session, fields.upload, fields.photograph, *answer]
    received = fields.upload.upload(handlers.received, [fields.upload, session], taken, show_progress="hidden", **alone)
    received.success(handlers.drawn, [session, *model], answer, **shown)

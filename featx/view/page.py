"""The page: its parts, and which function answers to what. Needs gradio."""

from typing import Any

import gradio as gr

from .handlers import Handlers, clicked, controls, weighed
from .parts import Parts
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
        _wire(Parts.laid_out(limits, remote), Handlers(limits, remote))
    return blocks


def _wire(parts: Parts, handlers: Handlers) -> None:
    """One event at a time runs a model, whoever asks; of several that wait, the last."""
    alone: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": 1, "concurrency_id": "model"}
    shown: dict[str, Any] = {"show_progress_on": parts.picture, "trigger_mode": "always_last", **alone}
    drawn = [parts.session, *parts.asked], parts.answer

    for field in (parts.seed, parts.size, *parts.controls):
        field.input(handlers.drawn, *drawn, **shown)
    parts.checkpoint.submit(handlers.drawn, *drawn, **shown)
    model = [parts.session, *parts.asked[:-3]]
    parts.name.input(handlers.renamed, model, [*parts.controls, *parts.answer], **shown)

    # what is seen at once, before a model runs
    quick: dict[str, Any] = {"show_progress": "hidden", **alone}
    taken = [parts.session, parts.upload, parts.photograph, *parts.answer]
    point = [parts.session, parts.photograph, parts.what, *parts.controls]
    for event, function, inputs, outputs, then in (
        (parts.upload.upload, handlers.received, [parts.upload, parts.session], taken, handlers.drawn),
        (parts.values.input, weighed, [parts.values], [parts.seed, parts.checkpoint], handlers.drawn),
        (parts.what.input, controls, [parts.what], parts.controls, handlers.drawn),
        (parts.photograph.select, clicked, [parts.session, parts.what], point, handlers.drawn_at_point),
    ):
        event(function, inputs, outputs, **quick).success(then, *drawn, **shown)

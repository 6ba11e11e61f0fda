"""The page: its fields and buttons, and which action answers which."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

import gam_merge as gm
from gam_ui import _actions as actions
from gam_ui._visitors import Visitors

# the empty one leaves it to the library, which takes that of the sources
FORMATS: list[str | tuple[str, str]] = [
    ("default", ""),
    "peft",
    "kohya",
    "diffusers",
    "mlx",
    "gguf",
]
_INTRODUCTION = """# gam-merge

LoRA adapters in, one LoRA adapter out. What you upload is removed when you leave."""


def page(visitors: Visitors) -> gr.Blocks:
    """Return the page for some visitors."""
    limits = visitors.limits
    with gr.Blocks(title="gam-merge", analytics_enabled=False, fill_width=False) as blocks:
        gr.Markdown(_INTRODUCTION)
        gr.Markdown("## 1. Adapters")
        gr.Markdown("Drop the weights and the config of one adapter together.")
        with gr.Row():
            files = gr.File(
                label="Files of adapters",
                file_count="multiple",
                height=160,
                elem_id="files",
            )
            folder = gr.File(
                label="Directory of an adapter",
                file_count="directory",
                height=160,
                elem_id="folder",
            )
        with gr.Row(equal_height=True):
            hub = gr.Textbox(
                label="Hub id",
                placeholder="org/name[@revision][:subfolder]",
                max_lines=1,
                scale=4,
                elem_id="hub",
            )
            add = gr.Button("Add from the Hub", scale=1, elem_id="add")
        adapters = gr.HTML(actions.NO_ADAPTERS, elem_id="adapters")
        restart = gr.Button("Remove all", size="sm", elem_id="restart")

        gr.Markdown("## 2. Look")
        with gr.Row(equal_height=True):
            which = gr.Dropdown([], label="Adapter", scale=3, elem_id="which")
            inspect = gr.Button("Inspect", scale=1, elem_id="inspect")
            compare = gr.Button("Compare all", scale=1, elem_id="compare")
        report = gr.HTML(elem_id="report")

        gr.Markdown("## 3. Merge")
        with gr.Row():
            with gr.Column():
                names = [method.name for method in gm.methods()]
                method = gr.Dropdown(
                    names,
                    value="auto",
                    label="Method",
                    allow_custom_value=True,
                    info="A name, or a composition such as ties@knots or pico+tsvm.",
                    elem_id="method",
                )
                weights = gr.Textbox(
                    label="Weights",
                    placeholder="0.7 0.3 (equal if empty)",
                    info="One per adapter, in their order.",
                    max_lines=1,
                    elem_id="weights",
                )
                params = gr.Textbox(
                    label="Parameters of the method",
                    placeholder="NAME=VALUE, one per line (defaults if empty)",
                    lines=2,
                    elem_id="params",
                )
                with gr.Row():
                    rank = gr.Textbox(
                        label="Rank",
                        placeholder="default",
                        max_lines=1,
                        elem_id="rank",
                    )
                    form = gr.Dropdown(FORMATS, value="", label="Format", elem_id="format")
            with gr.Column():
                advice = gr.HTML(actions.NO_ADVICE, elem_id="advice")
                with gr.Accordion("About the method", open=False):
                    card = gr.HTML(actions.card("auto"), elem_id="card")
        with gr.Row():
            plan = gr.Button("Plan", elem_id="plan")
            merge = gr.Button("Merge", variant="primary", elem_id="merge")
        result = gr.HTML(elem_id="result")

        with gr.Accordion("Push the merge to the Hub", open=False, elem_id="push-part"):
            with gr.Row():
                repo = gr.Textbox(label="Repository", placeholder="user/name", elem_id="repo")
                token = gr.Textbox(
                    label="Token with write access",
                    type="password",
                    info="Used for this upload and not kept.",
                    elem_id="token",
                )
            private = gr.Checkbox(label="Create the repository as private", elem_id="private")
            push = gr.Button("Push", elem_id="push")
            pushed = gr.HTML(elem_id="pushed")

        def on(action: Callable[..., Any]) -> dict[str, Any]:
            """Return the arguments of an event that an action answers."""
            answer = _answer(visitors, action)
            return {"fn": answer, "api_name": action.__name__, "api_visibility": "private"}

        listed = [adapters, which, files, folder]
        fields = [method, weights, params, rank, form]
        files.upload(**on(actions.add_files), inputs=files, outputs=listed)
        folder.upload(**on(actions.add_files), inputs=folder, outputs=listed)
        gr.on([add.click, hub.submit], **on(actions.add_from_hub), inputs=hub, outputs=listed)
        restart.click(**on(actions.start_over), outputs=listed)
        inspect.click(**on(actions.inspect), inputs=which, outputs=report)
        compare.click(**on(actions.compare), inputs=weights, outputs=[advice, report])
        method.change(**on(actions.describe), inputs=method, outputs=card)
        plan.click(**on(actions.plan), inputs=fields, outputs=result)
        merge.click(**on(actions.merge), inputs=fields, outputs=result, concurrency_limit=1)
        push.click(**on(actions.push), inputs=[repo, token, private], outputs=pushed)
        blocks.unload(_leave(visitors))
    return blocks.queue(max_size=limits.waiting, default_concurrency_limit=limits.at_once)


def _answer(visitors: Visitors, action: Callable[..., Any]) -> Callable[..., Any]:
    """Return an action as an event calls it: for its visitor, one at a time, errors in one line."""

    def answer(
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - how gradio hands one over
        *values: Any,
    ) -> Any:
        visitor = visitors.meet(str(request.session_hash))

        def report(done: int, total: int) -> None:
            progress((done, total), unit="modules")

        with visitor.busy:
            try:
                return action(visitor, report, *values)
            except gm.GamMergeError as error:
                text = escape(visitor.without_paths(str(error)))
                raise gr.Error(text, duration=None, print_exception=False) from None

    return answer


def _leave(visitors: Visitors) -> Callable[..., None]:
    """Return what happens when a page is closed."""

    def leave(request: gr.Request) -> None:
        visitors.leave(str(request.session_hash))

    return leave

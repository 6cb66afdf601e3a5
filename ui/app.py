"""The page: layout, and which event calls which method of which panel."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr  # noqa: E402

from .answers import AnswerPanel  # noqa: E402
from .chats import Sampling  # noqa: E402
from .documents import DocumentPanel  # noqa: E402
from .models import EMBEDDED, ModelPanel  # noqa: E402
from .page import Page  # noqa: E402
from .saved import SavedPanel  # noqa: E402
from .tabs import Tabs  # noqa: E402

FILES = [
    ".txt", ".md", ".rst", ".pdf", ".docx", ".html", ".htm", ".csv", ".json", ".yaml", ".toml",
    ".xml", ".tex", ".log", ".py", ".js", ".ts", ".c", ".h", ".cpp", ".hpp", ".rs", ".go", ".java",
    ".kt", ".cs", ".rb", ".php", ".swift", ".sh", ".sql", ".lua", ".r", ".jl", ".css", ".srt",
]  # fmt: skip
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one after another, for all tabs
MANY = MODEL | {"trigger_mode": "multiple"}  # also while another chat of the tab waits for its own
QUIET = {"show_progress": "hidden"}
WELCOME = (
    "### Chat with a whole book\nDrop documents on the right, or take the sample text, then ask. "
    "They are read once; what an answer looked at is shown beside it."
)


def build(page: Page, folders: list[Path]) -> gr.Blocks:
    """Make the page.

    Parameters
    ----------
    page : Page
    folders : list of Path
        Where to look for GGUF files.

    Returns
    -------
    gr.Blocks
    """
    with gr.Blocks(title="icecache-local", analytics_enabled=False, fill_width=True) as blocks:
        models = ModelPanel(page, folders)
        parts = _layout(models)
        _wire(blocks, page, models, parts)
    return blocks


def _layout(models: ModelPanel) -> dict[str, gr.blocks.Block]:
    """Make all components, by the names that `Page` uses for them."""
    p: dict[str, Any] = {}
    p["chat_id"] = gr.BrowserState(None, storage_key="icecache-local", secret="icecache-local")
    p["shown"] = gr.Textbox(visible="hidden")  # the documents that the page last showed
    p["pending"] = gr.Textbox(visible="hidden")  # the question that was just asked
    # Hidden, not absent: the browser makes the exported file from them.
    p["export_name"], p["export_text"] = (gr.Textbox(visible="hidden") for _ in range(2))
    with gr.Sidebar(width=290, elem_id="ice-side"):
        p["new"] = gr.Button("New chat", variant="primary", size="sm", elem_id="ice-new")
        p["chats"] = gr.Radio([], label="Chats", container=False, elem_id="ice-chats")
        with gr.Row(elem_classes="ice-row"):
            p["export"] = gr.Button("Export", size="sm", elem_id="ice-export")
            p["import"] = gr.UploadButton(
                "Import", size="sm", file_types=[".json"], elem_id="ice-import"
            )
            p["delete"] = gr.Button("Delete", size="sm", elem_id="ice-delete")
        _saved_panel(p)
        _model_panel(models, p)
        _settings_panel(p)
    p["model_name"] = gr.HTML(elem_id="ice-head")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            _chat_panel(p)
        with gr.Column(scale=4, min_width=320):
            _document_panel(p)
    return p


def _saved_panel(p: dict[str, Any]) -> None:
    with gr.Accordion("Saved on disk", open=False, elem_id="ice-saved"):
        p["saved"] = gr.Dropdown(
            [], label="Saved chats and read texts", elem_id="ice-saved-list", filterable=False
        )
        with gr.Row(elem_classes="ice-row"):
            p["saved_open"] = gr.Button("Open", size="sm", elem_id="ice-saved-open")
            p["saved_delete"] = gr.Button("Delete …", size="sm", elem_id="ice-saved-delete")
        with gr.Group(visible=False) as p["saved_sure"]:
            p["saved_question"] = gr.HTML(elem_id="ice-saved-question")
            with gr.Row(elem_classes="ice-row"):
                p["saved_yes"] = gr.Button("Delete it", variant="stop", size="sm")
                p["saved_no"] = gr.Button("Keep it", size="sm")
        p["saved_cost"] = gr.HTML(elem_id="ice-saved-cost")
        p["saved_name"] = gr.Textbox(label="Name", max_lines=1, elem_id="ice-saved-name")
        p["save"] = gr.Button("Save this chat", size="sm", elem_id="ice-save")


def _model_panel(models: ModelPanel, p: dict[str, Any]) -> None:
    with gr.Accordion("Model", open=False, elem_id="ice-model"):
        p["model"] = gr.Dropdown(
            models.files(), value=EMBEDDED, allow_custom_value=True, label="GGUF file",
            info="Choose one, or type a path.", elem_id="ice-model-file",
        )  # fmt: skip
        p["n_ctx"] = gr.Number(
            models.engine.n_ctx, label="Context, tokens", precision=0, minimum=256, step=1024
        )
        p["budget"] = gr.Slider(
            64,
            2048,
            models.engine.config.budget,
            step=32,
            label="Budget",
            info="Resident tokens per head.",
        )
        p["plan"] = gr.HTML()
        p["load"] = gr.Button("Load", variant="primary", size="sm", elem_id="ice-load")


def _settings_panel(p: dict[str, Any]) -> None:
    start = Sampling()
    with gr.Accordion("Settings", open=False, elem_id="ice-settings"):
        p["system"] = gr.Textbox(label="System prompt", lines=3, max_lines=8)
        p["temperature"] = gr.Slider(0, 2, start.temperature, step=0.05, label="Temperature")
        p["top_p"] = gr.Slider(0, 1, start.top_p, step=0.01, label="Top p")
        p["top_k"] = gr.Slider(0, 200, start.top_k, step=1, label="Top k")
        p["min_p"] = gr.Slider(0, 1, start.min_p, step=0.01, label="Min p")
        p["repeat_penalty"] = gr.Slider(
            0.8, 1.5, start.repeat_penalty, step=0.01, label="Repeat penalty"
        )
        p["max_tokens"] = gr.Number(
            start.max_tokens, label="Longest answer, tokens", precision=0, minimum=1
        )
        p["seed"] = gr.Number(start.seed, label="Seed, -1 is random", precision=0, minimum=-1)


def _chat_panel(p: dict[str, Any]) -> None:
    p["chatbot"] = gr.Chatbot(
        show_label=False, height="calc(100dvh - 232px)", min_height=300, editable="user",
        buttons=["copy"], layout="bubble", placeholder=WELCOME, elem_id="ice-chat",
    )  # fmt: skip
    p["notice"] = gr.HTML(elem_id="ice-notice")
    with gr.Row(elem_id="ice-progress", equal_height=True):
        p["reading"] = gr.HTML(elem_id="ice-reading")
        p["cancel"] = gr.Button(
            "Cancel", size="sm", visible=False, scale=0, min_width=90, elem_id="ice-cancel"
        )
    p["box"] = gr.Textbox(
        show_label=False, placeholder="Ask about the documents", lines=1, max_lines=6,
        submit_btn=True, autofocus=True, elem_id="ice-box", container=False,
        label="Question",
    )  # fmt: skip
    with gr.Row(elem_classes="ice-row"):
        p["again"] = gr.Button("Regenerate", size="sm", elem_id="ice-again")
        p["more"] = gr.Button("Continue", size="sm", elem_id="ice-more")


def _document_panel(p: dict[str, Any]) -> None:
    p["context"] = gr.HTML(elem_id="ice-context")
    with gr.Tabs(elem_id="ice-tabs") as p["tabs"]:
        with gr.Tab("Documents", id="documents"):
            p["files"] = gr.File(
                file_count="multiple", file_types=FILES, show_label=False, height=118,
                elem_id="ice-files",
            )  # fmt: skip
            p["documents"] = gr.Dropdown(
                [], multiselect=True, label="In this chat", elem_id="ice-documents",
            )  # fmt: skip
            p["sample"] = gr.Button(
                "Add a sample text with hidden facts", size="sm", elem_id="ice-sample"
            )
        with gr.Tab("What it looked at", id="look"):
            p["look"] = gr.HTML(elem_id="ice-look")
            p["viewer"] = gr.HTML(elem_id="ice-text")
    p["meters"] = gr.HTML(elem_id="ice-meters")


def _wire(blocks: gr.Blocks, page: Page, models: ModelPanel, p: dict[str, Any]) -> None:
    """Connect events with methods."""
    everything = [p[name] for name in p if name != "files"] + [p["files"]]
    settings = [p[name] for name in ("system", *Sampling.__dataclass_fields__)]
    key, tabs = p["chat_id"], Tabs(p)
    blocks.unload(tabs.forget)

    def on(trigger: Callable, method: Callable, inputs: list, **options: Any) -> Any:
        return trigger(
            tabs.handler(method), inputs, everything, api_visibility="private", **QUIET, **options
        )

    def to_look(done: Any) -> None:
        """Turn to what an answer looked at once it is there."""
        turned = done.then(
            tabs.handler(page.tab), [key], [p["tabs"]], api_visibility="private", **QUIET
        )
        turned.then(None, js="() => window.icecacheBest()")

    saved, documents, answers = SavedPanel(page), DocumentPanel(page), AnswerPanel(page)
    for done in (
        on(blocks.load, page.show, [key]),
        on(p["new"].click, page.new_chat, [key]),
        on(p["chats"].input, page.show, [p["chats"]]),
    ):
        on(done.then, saved.show, [p["saved"], key])
    on(p["delete"].click, page.delete_chat, [key])
    on(p["import"].upload, page.import_chat, [p["import"], key])
    on(p["export"].click, page.export, [key]).then(
        None,
        [p["export_name"], p["export_text"]],
        js="(name, text) => window.icecacheSave(name, text)",
    )
    on(p["chatbot"].select, page.show_look, [key])

    for done in (
        on(p["files"].upload, documents.add_files, [p["files"], key], **MANY),
        # Not `input`: the x that clears all of them only changes the value.
        on(p["documents"].change, documents.choose, [p["documents"], p["shown"], key], **MODEL),
        on(p["sample"].click, documents.sample, [key], **MANY),
    ):
        on(done.then, saved.show, [p["saved"], key])  # the library may have a text more
    for trigger in (p["cancel"].click, p["box"].stop):
        trigger(answers.stop, None, None, queue=False, api_visibility="private", **QUIET)

    begun = on(p["box"].submit, answers.begin, [p["box"], key], queue=False)
    to_look(on(begun.then, answers.ask, [p["pending"], key, *settings], **MANY))
    to_look(on(p["again"].click, answers.again, [key, *settings], **MANY))
    to_look(on(p["more"].click, answers.more, [key, *settings], **MANY))
    to_look(on(p["chatbot"].edit, answers.edit, [key, *settings], **MANY))

    on(p["saved_open"].click, saved.open, [p["saved"]], **MODEL)
    on(p["saved_delete"].click, saved.ask_delete, [p["saved"]])
    on(p["saved_no"].click, saved.keep, [])
    on(p["saved_yes"].click, saved.delete, [p["saved"]])
    on(p["save"].click, saved.save, [p["saved_name"], key], **MODEL)

    chosen = [p["model"], p["n_ctx"], p["budget"]]
    on(p["model"].input, models.propose, [p["model"], p["budget"]])
    for trigger in (blocks.load, p["n_ctx"].change, p["budget"].release):
        on(trigger, models.plan, chosen)
    loaded = on(p["load"].click, models.load, chosen, **MODEL)
    on(loaded.then, page.refresh, [key])

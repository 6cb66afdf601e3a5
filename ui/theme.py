"""How the page looks and acts in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

HERE = Path(__file__).parent


def theme() -> gr.themes.Base:
    """Colours and fonts; the fonts are the system's, so that nothing is loaded."""
    base = gr.themes.Base(
        primary_hue="orange",
        neutral_hue="zinc",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "monospace"],
        radius_size="lg",
        text_size="md",
    )
    return base.set(
        body_background_fill="*neutral_50",
        button_secondary_background_fill="*background_fill_primary",
        button_secondary_background_fill_hover="*background_fill_secondary",
        button_secondary_border_color="*border_color_primary",
        button_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        input_background_fill="*background_fill_primary",
        input_border_width="1px",
        block_label_text_color="*body_text_color_subdued",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
    )


def look_and_feel() -> dict[str, Any]:
    """Arguments of `Blocks.launch` that make the page look and act as it should."""
    return {
        "theme": theme(),
        "css": (HERE / "style.css").read_text(),
        "js": (HERE / "page.js").read_text(),
        "footer_links": [],
        "ssr_mode": False,
    }

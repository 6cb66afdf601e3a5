"""Pieces of HTML: everything here takes plain data and escapes what comes from outside."""

from __future__ import annotations

from html import escape

from icecache_local.gguf_info import ModelInfo
from icecache_local.planner import Plan, format_bytes

from .events import Meters, Reading
from .passages import Look, sentences

FAINT = 0.02  # heat, of 1, below which a document is not worth a strip
N_SHOWN = 4  # passages beside the chat
PER_BLOCK = 12  # sentences of one paragraph of HTML in the viewer


def notice(text: str, kind: str = "error") -> str:
    """One sentence to the user; `kind` is error or info."""
    role = "alert" if kind == "error" else "status"
    return f'<div class="ice-notice {kind}" role="{role}">{escape(text)}</div>' if text else ""


def model_line(info: ModelInfo | None, n_ctx: int) -> str:
    """Head of the page, with the loaded model."""
    if info is None:
        return '<h1>icecache-local</h1><span class="ice-model">no model loaded</span>'
    name = f"<b>{escape(info.name)}</b> · {n_ctx:,} tokens of context"
    return f'<h1>icecache-local</h1><span class="ice-model">{name}</span>'


def saved_cost(chats: tuple[int, int], texts: tuple[int, int], has_library: bool) -> str:
    """Tell what is saved; both arguments are (number, bytes)."""
    parts = [f"{_count(chats[0], 'chat')} saved, {format_bytes(chats[1])}"]
    if has_library:
        parts.append(f"{_count(texts[0], 'text')} in the library, {format_bytes(texts[1])}")
    return f'<p class="ice-empty">{"<br>".join(parts)}</p>'


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'' if n == 1 else 's'}"


def delete_question(name: str, is_text: bool) -> str:
    """Ask whether something saved is to go."""
    loss = "It will have to be read again." if is_text else "The chat itself stays in the list."
    return f'<p class="ice-empty"><b>Delete {escape(name)}?</b> {loss}</p>'


def plan_table(info: ModelInfo, plan: Plan) -> str:
    """Tell what a model and a context take, with a verdict."""
    ram = plan.total
    rows = [
        ("Weights", plan.weights),
        ("Cells (resident)", plan.cells),
        ("Host tier (all tokens)", plan.host),
        ("Index", plan.index),
        ("Compute, program", plan.compute + plan.program),
    ]
    body = "".join(f"<tr><td>{name}</td><td>{format_bytes(n)}</td></tr>" for name, n in rows)
    if plan.fits:
        kind, verdict = "fits", f"Fits: {format_bytes(plan.available)} of memory are free."
    else:
        missing = format_bytes(plan.total - plan.available)
        advice = (
            f"try a context of {plan.max_n_ctx:,} tokens"
            if plan.max_n_ctx
            else "close other programs or try a smaller model"
        )
        kind, verdict = "full", f"Needs {missing} more; {advice}."
    notes = "".join(f"<p>{escape(note)}</p>" for note in plan.notes)
    return (
        f'<div class="ice-plan"><table>{body}'
        f"<tr class=total><td>RAM in all</td><td>{format_bytes(ram)}</td></tr>"
        f"<tr><td>VRAM</td><td>0 B</td></tr>"
        f"<tr class=other><td>Full KV cache instead</td>"
        f"<td>{format_bytes(plan.full_kv)}</td></tr></table>"
        f'<p class="verdict {kind}">{verdict}</p>{notes}</div>'
    )


def context_meter(documents: int, talk: int, n_ctx: int) -> str:
    """How full the context is, in tokens."""
    used, most = documents + talk, max(1, n_ctx)
    full = " full" if used > 0.9 * most else ""
    shares = [min(100, 100 * n / most) for n in (documents, talk)]
    return (
        f'<div class="ice-context{full}"><div class="label"><span>Context</span>'
        f"<span>{used:,} of {n_ctx:,} tokens</span></div>"
        f'<div class="bar" role="meter" aria-label="Context used" aria-valuemin="0" '
        f'aria-valuemax="{n_ctx}" aria-valuenow="{used}">'
        f'<i class="d" style="width:{shares[0]:.2f}%"></i>'
        f'<i class="t" style="width:{shares[1]:.2f}%"></i></div></div>'
    )


def reading_bar(reading: Reading | None) -> str:
    """Progress of reading, with speed and time left."""
    if reading is None:
        return ""
    rate = reading.done / max(reading.seconds, 1e-6)
    left = (reading.total - reading.done) / max(rate, 1e-6)
    percent = 100 * reading.done / max(1, reading.total)
    return (
        f'<div class="ice-reading"><div class="label"><span>Reading {reading.done:,} of '
        f"{reading.total:,} tokens</span><span>{rate:,.0f} tokens/s · {clock(left)} left</span>"
        f'</div><div class="bar" role="progressbar" aria-label="Reading" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{percent:.0f}">'
        f'<i style="width:{percent:.1f}%"></i></div></div>'
    )


def clock(seconds: float) -> str:
    """Seconds as 42 s, 3:07 min or 1:02 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def meters(now: Meters | None) -> str:
    """Speeds and tiers after the last job."""
    if now is None:
        return ""
    stats = now.stats
    cells = [
        ("Reading", f"{now.prefill:,.0f} tokens/s" if now.prefill else "–", "last prompt"),
        ("Writing", f"{now.decode:,.1f} tokens/s" if now.decode else "–", "last answer"),
        ("Resident", f"{stats.resident_tokens:,} tokens", format_bytes(stats.device_bytes)),
        (
            "Host tier",
            f"{stats.n_tokens if stats.host_bytes else 0:,} tokens",
            f"{format_bytes(stats.host_bytes + stats.index_bytes)} with index",
        ),
        ("Uploaded", f"{stats.uploaded_tokens:,.1f} tokens", "per head and step"),
        ("Hit rate", f"{stats.hit_rate:.1%}", "selected and resident"),
    ]
    body = "".join(
        f"<div><dt>{name}</dt><dd>{value}</dd><small>{note}</small></div>"
        for name, value, note in cells
    )
    return f'<dl class="ice-meters">{body}</dl>'


def look_list(looks: list[Look], documents: dict[str, tuple[str, str]], answered: bool) -> str:
    """Heat strips and ranked passages of one answer.

    Parameters
    ----------
    looks : list of Look
    documents : dict of id to (name, text)
    answered : bool
        Whether there is an answer at all.
    """
    known = [(n, look) for n, look in enumerate(looks) if look.document in documents]
    if not known:
        why = (
            "Nothing to show for this answer: it was one token long, or text and answer are short "
            "enough that all of it stays resident and nothing had to be selected."
            if answered
            else "After an answer, the passages it looked at appear here."
        )
        return f'<p class="ice-empty">{why}</p>'
    strips, items = [], []
    for n, look in known:
        name = escape(documents[look.document][0])
        bins = "".join(
            f'<i style="--h:{heat:.2f}" data-jump="ice-bin-{n}-{i}"></i>'
            for i, heat in enumerate(look.heat)
        )
        items += [(p.share, n, look.document, i, p) for i, p in enumerate(look.passages)]
        if max(look.heat) < FAINT:
            continue
        strips.append(
            f'<figure class="ice-strip"><figcaption>{name}</figcaption>'
            f'<div role="img" aria-label="Attention along {name}">{bins}</div></figure>'
        )
    items.sort(key=lambda item: -item[0])
    rows = "".join(
        f'<li><button type="button" data-jump="ice-passage-{n}-{i}">'
        f"<b>{share:.0%}</b><span>{escape(documents[key][1][p.start : p.end])}</span>"
        f"</button></li>"
        for share, n, key, i, p in items[:N_SHOWN]
    )
    return f'{"".join(strips)}<ol class="ice-passages" aria-label="Passages looked at">{rows}</ol>'


def viewer(looks: list[Look], documents: dict[str, tuple[str, str]]) -> str:
    """Text of the documents with the passages of one answer marked.

    Parameters
    ----------
    looks : list of Look
    documents : dict of id to (name, text)
    """
    numbered = {look.document: (n, look) for n, look in enumerate(looks)}
    parts = []
    for key, (name, text) in documents.items():
        n, look = numbered.get(key, (-1, None))
        parts.append(f"<h4>{escape(name)}</h4>{_marked(text, n, look)}")
    return (
        f'<div class="ice-viewer" tabindex="0" role="document" aria-label="Document text">'
        f"{''.join(parts)}</div>"
        if parts
        else ""
    )


def _marked(text: str, n: int, look: Look | None) -> str:
    """One document in blocks, with marks around passages and anchors for the strip."""
    marks = {}
    anchors: list[tuple[int, str]] = []
    if look is not None:
        marks = {p.start: (p.end, f"ice-passage-{n}-{i}") for i, p in enumerate(look.passages)}
        n_bins = len(look.heat)
        anchors = [(-(-i * len(text) // n_bins), f"ice-bin-{n}-{i}") for i in range(n_bins)]
    starts = sentences(text).tolist()
    cuts = sorted({*starts, *marks, *(end for end, _ in marks.values()), len(text)})
    blocks: list[list[str]] = [[]]
    anchor, block_ends = 0, set(starts[PER_BLOCK::PER_BLOCK])
    for start, end in zip(cuts, cuts[1:], strict=False):
        if start in block_ends:
            blocks.append([])
        first = anchor
        while anchor < len(anchors) and anchors[anchor][0] < end:
            anchor += 1
        if anchor > first:  # one for all bins that begin here; the page looks for it backwards
            blocks[-1].append(f'<span id="{anchors[first][1]}"></span>')
        piece = escape(text[start:end])
        if start in marks:
            piece = f'<mark id="{marks[start][1]}" tabindex="-1">{piece}</mark>'
        blocks[-1].append(piece)
    return "".join(f"<p>{''.join(block)}</p>" for block in blocks)

"""The page on data quality that an analyst reads: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta
from html import escape

from features.config import Config
from features.contracts import REASONS
from features.problems import Problem
from features.profile import MoneyProfile, SourceProfile, TableProfile

WIDTH, HEIGHT = 860, 120
STYLE = """
body{font:15px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif;color:#1b2733;background:#f5f6f8;
margin:0}main{max-width:960px;margin:0 auto;padding:28px 24px 60px}h1{font-size:26px;margin:0 0 4px}
h2{font-size:19px;margin:34px 0 10px;padding-top:14px;border-top:1px solid #d8dde3}
h3{font-size:15px;margin:18px 0 6px}p{margin:6px 0}.sub{color:#5b6875}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
margin:18px 0}.card{background:#fff;border:1px solid #e1e5ea;border-radius:8px;padding:10px 14px}
.card b{display:block;font-size:20px}.card span{color:#5b6875;font-size:13px}
ul.found{list-style:none;padding:0;margin:8px 0}ul.found li{background:#fff;border-radius:6px;
padding:8px 12px;margin:6px 0;border-left:5px solid #8d99ae}ul.found li.error{border-color:#b3261e}
ul.found li.warning{border-color:#e0a100}ul.found code{font-weight:600}
table{border-collapse:collapse;background:#fff;border:1px solid #e1e5ea;margin:6px 0;width:100%}
th,td{padding:5px 10px;text-align:left;border-bottom:1px solid #eceff3;font-size:14px}
th{background:#eef1f5;font-weight:600}td.n,th.n{text-align:right;
font-variant-numeric:tabular-nums}.bad{color:#b3261e;font-weight:600}.ok{color:#2e7d4f}
svg{background:#fff;border:1px solid #e1e5ea;display:block;max-width:100%}
details{margin:8px 0}summary{cursor:pointer;color:#38506b}
"""


def page(profile: SourceProfile, problems: Sequence[Problem], config: Config) -> str:
    """The whole page as HTML; `problems` stand at its top, the gravest first."""
    title = f"Data quality: {config.name}"
    origin = f"source {config.source.kind}" + (
        f", {config.source.path}" if config.source.path else ""
    )
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p class=sub>{escape(origin)}; as of {profile.as_of:%Y-%m-%d %H:%M} UTC; amounts in "
        f"{escape(config.currency)}</p>",
        _cards(profile),
        _findings(problems),
        _overview(profile),
    ]
    parts += [_table(table) for table in profile.tables.values()]
    if profile.money is not None:
        parts.append(_money(profile.money, config.currency))
    if profile.arms:
        total = sum(profile.arms.values())
        rows = [(arm, _n(n), _share(n, total)) for arm, n in profile.arms.items()]
        parts.append("<h2>Exposures by arm</h2>" + _grid(("arm", "#rows", "#share"), rows))
    if profile.events:
        kinds = [(kind, _n(n)) for kind, n in profile.events.items()]
        parts.append("<h2>Events by type</h2>" + _grid(("type", "#rows"), kinds))
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title>"
        f"<style>{STYLE}</style><main>{''.join(parts)}</main></html>\n"
    )


def _cards(profile: SourceProfile) -> str:
    cards: list[tuple[str, str]] = []
    lines = profile.tables.get("transactions")
    if lines is not None:
        cards.append((_n(lines.rows), "order lines"))
        cards.append((_n(lines.customers), "customers who bought"))
        if profile.money is not None:
            cards.append((_n(profile.money.orders), "orders"))
        if lines.age_days is not None:
            cards.append((_age(lines.age_days), "newest line before as of"))
    exposed = profile.tables.get("exposures")
    if exposed is not None:
        cards.append((_n(exposed.rows), "exposures"))
    read = sum(t.counts.get("read", t.rows) for t in profile.tables.values())
    aside = sum(sum(t.set_aside.values()) for t in profile.tables.values())
    cards.append((_share(aside, read), f"rows set aside ({_n(aside)})"))
    shown = "".join(f"<div class=card><b>{b}</b><span>{escape(s)}</span></div>" for b, s in cards)
    return f"<div class=cards>{shown}</div>"


def _findings(problems: Sequence[Problem]) -> str:
    grave = [p for p in problems if p.level != "note"]
    notes = [p for p in problems if p.level == "note"]
    if grave:
        head = "<h2>What needs attention</h2>" + _list(grave)
    else:
        head = "<h2>What needs attention</h2><p class=ok>Nothing: no error and no warning.</p>"
    if notes:
        head += f"<details><summary>{len(notes)} notes</summary>{_list(notes)}</details>"
    return head


def _list(problems: Iterable[Problem]) -> str:
    rows = "".join(
        f"<li class={p.level}><b>{p.level.capitalize()}</b> <code>{escape(p.where)}</code>: "
        f"{escape(p.text)}</li>"
        for p in problems
    )
    return f"<ul class=found>{rows}</ul>"


def _overview(profile: SourceProfile) -> str:
    rows = []
    for t in profile.tables.values():
        moment = [f"{m:%Y-%m-%d %H:%M}" if m else "" for m in (t.first, t.last)]
        gaps = f"{t.gap_days} of {t.span_days}" if t.days else ""
        aside = _n(sum(t.set_aside.values()))
        age = "" if t.age_days is None else _age(t.age_days)
        read = _n(t.counts.get("read", t.rows))
        rows.append((t.name, read, aside, _n(t.customers), *moment, age, gaps))
    heads = (
        "table",
        "#rows read",
        "#set aside",
        "#customers",
        "first (UTC)",
        "last (UTC)",
        "#age",
        "#days without a row",
    )
    return "<h2>Tables</h2>" + _grid(heads, rows)


def _table(table: TableProfile) -> str:
    parts = [f"<h2>{escape(table.name.capitalize())}</h2>"]
    if table.span_days > 1:
        parts.append("<h3>Rows per day</h3>" + bars(table.days, gaps=not table.in_waves))
    if table.gaps:
        shown = ", ".join(
            f"{g.first} to {g.last} ({g.days} days)" if g.days > 1 else f"{g.first}"
            for g in table.gaps
        )
        text = f"{table.gap_days} of {table.span_days} days have no row"
        if table.in_waves:
            text += f": the rows come on {len(table.days)} days, in waves"
        else:
            text += f"; the longest gaps: {shown}"
        parts.append(f"<p>{escape(text)}.</p>")
    elif table.span_days > 1:
        parts.append("<p class=ok>Every day of the range has rows.</p>")
    elif table.days:
        parts.append(f"<p>All rows are of one day, {min(table.days)}.</p>")
    if table.set_aside:
        rows = [
            (reason, REASONS.get(reason, "identical lines, dropped"), _n(n))
            for reason, n in sorted(table.set_aside.items(), key=lambda pair: -pair[1])
        ]
        parts.append("<h3>Rows set aside</h3>" + _grid(("reason", "meaning", "#rows"), rows))
    absent = [c for c, share in table.nulls.items() if share == 1]
    if absent and table.rows:
        parts.append(f"<p>Without any value, or not given: {escape(', '.join(absent))}.</p>")
    partly = {c: share for c, share in table.nulls.items() if 0 < share < 1}
    if partly:
        missing = [
            (c, f"{100 * share:.2f}%")
            for c, share in sorted(partly.items(), key=lambda pair: -pair[1])
        ]
        parts.append(
            "<h3>Columns with missing values</h3>" + _grid(("column", "#missing"), missing)
        )
    elif table.rows:
        parts.append("<p class=ok>No other column has missing values.</p>")
    return "".join(parts)


def _money(money: MoneyProfile, currency: str) -> str:
    names = {0.0: "least", 0.5: "median", 1.0: "most"}
    heads = [f"#{names.get(q, f'{100 * q:g}%')}" for q in money.quantiles]
    parts = [
        "<h2>Money</h2>",
        f"<h3>Amount of a purchase line, {escape(currency)}</h3>",
        _grid(heads, [tuple(f"{v:,.2f}" for v in money.quantiles.values())]),
    ]
    facts = [
        ("lines that are returns", f"{_n(money.returns)} ({_share(money.returns, money.lines)})"),
        (
            "money returned",
            f"{money.returned:,.2f} of {money.purchased:,.2f} "
            f"({_share(money.returned, money.purchased)})",
        ),
        (
            "discount, of list value",
            f"{money.discount:,.2f} ({_share(money.discount, money.purchased + money.discount)})",
        ),
        ("identical order lines", _n(money.identical_lines)),
        (
            "orders that repeat another of the same customer, moment and total",
            f"{_n(money.repeated_orders)} of {_n(money.orders)}",
        ),
    ]
    if money.low is not None and money.high is not None:
        text = f"{_n(money.outliers)} outside {money.low:,.2f} to {money.high:,.2f}"
        if money.examples:
            text += f" (orders {', '.join(money.examples)})"
        facts.append(("unusual amounts (6 robust deviations of the logarithm)", text))
    return "".join(parts) + _grid(("fact", "value"), facts)


def bars(days: Mapping[date, int], *, gaps: bool = True) -> str:
    """Rows per day as an SVG of its own; with `gaps`, days without a row are red below the axis."""
    first, last = min(days), max(days)
    span = (last - first).days + 1
    top = max(days.values())
    step = WIDTH / span
    path, missing = [], []
    for i in range(span):
        n = days.get(first + timedelta(days=i), 0)
        x = i * step
        if n:
            high = HEIGHT * n / top
            path.append(f"M{x:.2f} {HEIGHT - high:.2f}h{step:.2f}v{high:.2f}h-{step:.2f}z")
        elif gaps:
            missing.append(f"M{x:.2f} {HEIGHT}h{max(step, 1):.2f}v5h-{max(step, 1):.2f}z")
    middle = first + timedelta(days=span // 2)
    return (
        f'<svg viewBox="-70 -8 {WIDTH + 80} {HEIGHT + 38}" width="{WIDTH + 80}" role="img" '
        f'aria-label="rows per day"><path d="{"".join(path)}" fill="#38506b"/>'
        f'<path d="{"".join(missing)}" fill="#b3261e"/>'
        f'<path d="M0 {HEIGHT}h{WIDTH}" stroke="#8d99ae" fill="none"/>'
        '<g font-size="12" fill="#5b6875">'
        f'<text x="-6" y="6" text-anchor="end">{_n(top)}</text>'
        f'<text x="-6" y="{HEIGHT}" text-anchor="end">0</text>'
        f'<text x="0" y="{HEIGHT + 22}">{first}</text>'
        f'<text x="{WIDTH / 2}" y="{HEIGHT + 22}" text-anchor="middle">{middle}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT + 22}" text-anchor="end">{last}</text></g></svg>'
    )


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a head that begins with # is a column of numbers."""
    kinds = [" class=n" if head.startswith("#") else "" for head in heads]
    top = "".join(f"<th{k}>{escape(h.lstrip('#'))}</th>" for k, h in zip(kinds, heads, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><tr>{top}</tr>{body}</table>"


def _n(value: int) -> str:
    return f"{value:,}"


def _share(part: float, whole: float) -> str:
    return f"{100 * part / whole:.2f}%" if whole else "0%"


def _age(days: float) -> str:
    if days < 0:
        return f"{-days:,.1f} days after"
    return f"{days:,.1f} days" if days < 100 else f"{days:,.0f} days"

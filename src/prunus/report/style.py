"""Style: the one style sheet of the report, with the heat scale computed so that every number on it can be read.

Contrast is WCAG's (L1 + 0.05) / (L2 + 0.05) of relative luminances; a step of the heat scale takes black or white for
its number, whichever stands out more, in the light and in the dark theme.
"""

from typing import Final

__all__ = ["CSS", "HEAT", "INK", "contrast"]

Colour = tuple[int, int, int]

HEAT: Final[dict[str, tuple[Colour, Colour]]] = {
    "light": ((0xED, 0xF1, 0xEC), (0x08, 0x4C, 0x41)),
    "dark": ((0x22, 0x29, 0x2A), (0x7D, 0xDB, 0xC4)),
}
"""The colours of 0 and of 1 by theme; steps between them are mixed linearly."""

INK: Final[dict[str, dict[str, str]]] = {
    "light": {
        "paper": "#fcfbf9",
        "ink": "#1c2126",
        "soft": "#565d65",
        "rule": "#e2dfd8",
        "track": "#eceae4",
        "note": "#f5ecd9",
        "c0": "#0a6858",
        "c1": "#a4440a",
        "c2": "#484fa8",
        "c3": "#8d2f6b",
        "c4": "#5d6612",
        "c5": "#565d65",
    },
    "dark": {
        "paper": "#14181b",
        "ink": "#e8e6e1",
        "soft": "#a3a9b0",
        "rule": "#2d3338",
        "track": "#272d31",
        "note": "#2f2817",
        "c0": "#5fcbb4",
        "c1": "#f0a46c",
        "c2": "#a9aef5",
        "c3": "#e692c4",
        "c4": "#c3cc6a",
        "c5": "#a3a9b0",
    },
}
"""Colours by theme and role: c0 sparsity, c1 the metric, c2-c4 further lines, c5 what was due or dense."""

_PAGE: Final = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;overflow-wrap:anywhere}
main{max-width:52rem;margin:0 auto;padding:3.5rem 1.5rem 5rem}
header p{margin:0;color:var(--soft)}
h1{font-size:1.9rem;line-height:1.25;font-weight:650;letter-spacing:-.015em;margin:.35rem 0 .5rem}
h2{font-size:1.2rem;line-height:1.35;font-weight:650;letter-spacing:-.005em;margin:0 0 .4rem}
h3{font-size:1rem;font-weight:600;margin:2rem 0 .6rem}
section{margin-top:3.5rem;padding-top:1.6rem;border-top:1px solid var(--rule)}
section>p{margin:.2rem 0 1.2rem;color:var(--soft);max-width:42rem}
.lede{font-size:1.2rem;line-height:1.55;margin:1.8rem 0 0;color:var(--ink);max-width:44rem}
.lede+ul,header+ul{margin-top:.6rem}
.lede b{font-weight:650;white-space:nowrap}
.state{display:inline-block;border:1px solid currentColor;border-radius:99px;padding:0 .6rem;font-size:.8rem;
margin-left:.5rem;color:var(--c0)}
.state.open{color:var(--c1)}
.note{background:var(--note);border-radius:6px;padding:.9rem 1.1rem;margin:1.6rem 0 0}
.note p{margin:0 0 .3rem;font-weight:650}
.note ul{margin:0;padding-left:1.1rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:.55rem .5rem;border-bottom:1px solid var(--rule);text-align:right;vertical-align:top;font-weight:400}
th:first-child,td:first-child{text-align:left;padding-left:0}
td:last-child,th:last-child{padding-right:0}
thead th{color:var(--soft);font-size:.85rem;padding-bottom:.35rem}
.headline .main th,.headline .main td{font-size:1.25rem;font-weight:650;padding-top:.8rem;padding-bottom:.8rem}
.headline .main details p{font-size:.9rem}
.headline .baseline{color:var(--soft)}
.headline td{white-space:nowrap}td{overflow-wrap:normal}td small{display:block;color:var(--soft);font-size:.8rem}
.none{color:var(--soft)}.headline .main td.none{font-weight:400;font-size:1rem}
td.mid{text-align:center}
.scroll{overflow-x:auto;margin:.8rem 0 0}
.small{font-size:.82rem;line-height:1.45}
.small td,.small th{padding:.3rem .5rem;white-space:nowrap}
.small td.name,.small th.name{white-space:normal;min-width:14rem;max-width:24rem;overflow-wrap:anywhere;
text-align:left}.small td:first-child,.small th:first-child{padding-left:0}
summary{cursor:pointer}
summary::marker{color:var(--soft)}
.def summary{list-style:none;text-decoration:underline dotted var(--soft) 1px;text-underline-offset:.28em}
.def summary::-webkit-details-marker{display:none}
.def p{margin:.35rem 0 .2rem;color:var(--soft);font-weight:400;font-size:.9rem;line-height:1.5;max-width:26rem;
white-space:normal}
:focus-visible{outline:2px solid var(--c0);outline-offset:3px;border-radius:2px}
.more{margin-top:1.4rem}
.more>summary{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1.6rem;margin:.6rem 0 0}
dt{color:var(--soft)}
dd{margin:0;font-variant-numeric:tabular-nums}
pre{font:.84rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;margin:.6rem 0 0;
padding:1rem 1.1rem;border:1px solid var(--rule);border-radius:6px;overflow-x:auto;white-space:pre-wrap}
code{font:.9em ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
ul.plain{margin:.6rem 0 0;padding-left:1.1rem}
figure{margin:1.4rem 0 0}
figcaption{color:var(--soft);font-size:.86rem;margin-top:.5rem;max-width:42rem}
footer{margin-top:4rem;color:var(--soft);font-size:.86rem}
svg{display:block;width:100%;height:auto;font-size:12px;overflow:visible}
.wide svg{max-width:52rem}
.narrow{display:none}
@media (max-width:40rem){.wide{display:none}.narrow{display:block}main{padding:2rem 1.1rem 3rem}
h1{font-size:1.5rem}.lede{font-size:1.08rem}section{margin-top:2.6rem}
th,td{padding-left:.35rem;padding-right:.35rem}.headline{font-size:.92rem}
.headline .main th,.headline .main td{font-size:1.02rem}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.5rem}}
svg text{fill:var(--soft);font-variant-numeric:tabular-nums}
svg .name,svg .value{fill:var(--ink)}
svg .end{text-anchor:end}svg .middle{text-anchor:middle}
svg .cell{font-size:11.5px;font-weight:500}svg .axis{font-weight:600}
svg .label{font-weight:600;stroke:var(--paper);stroke-width:4px;stroke-linejoin:round;paint-order:stroke}
.grid{stroke:var(--rule);fill:none}.tickmark{stroke:var(--soft);fill:none}
.track{fill:var(--track)}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.dashed{stroke-dasharray:7 5}.dotted{stroke-dasharray:1 5}
.band{stroke-width:7;opacity:.32}.faint{stroke-width:1;opacity:.3}
@media print{body{font-size:10.5pt}main{max-width:none;padding:0}section{break-inside:auto;margin-top:1.6rem}
figure,tr,.note{break-inside:avoid}h2,h3{break-after:avoid}.wide{display:block}.narrow{display:none}
details::details-content{content-visibility:visible;display:block}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""


def luminance(colour: Colour) -> float:
    """Relative luminance of an sRGB colour, 0 (black) to 1 (white) (WCAG 2.2, definition "relative luminance")."""
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: Colour, other: Colour) -> float:
    """Contrast ratio of two sRGB colours, 1 to 21; text wants at least 4.5 (WCAG 2.2, 1.4.3)."""
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def heat_step(theme: str, step: int, steps: int = 20) -> tuple[Colour, Colour]:
    """The colour of a step of the heat scale and the colour, black or white, of a number printed on it."""
    low, high = HEAT[theme]
    share = step / steps
    mixed = tuple(round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    fill = (mixed[0], mixed[1], mixed[2])
    black, white = (0, 0, 0), (255, 255, 255)
    return fill, black if contrast(fill, black) >= contrast(fill, white) else white


def _theme(theme: str) -> str:
    colours = ";".join(f"--{role}:{colour}" for role, colour in INK[theme].items())
    rules = [f":root{{color-scheme:{theme};{colours}}}"]
    for step in range(21):
        fill, ink = heat_step(theme, step)
        rules.append(f".h{step}{{fill:{_hex(fill)}}}svg .t{step}{{fill:{_hex(ink)}}}")
    return "\n".join(rules)


def _hex(colour: Colour) -> str:
    return "#" + bytes(colour).hex()


def _tones() -> str:
    return "".join(f".s{i}{{stroke:var(--c{i})}}.f{i},svg .f{i}{{fill:var(--c{i})}}" for i in range(6))


# Dark is for screens alone: paper is white.
CSS: Final = f"{_theme('light')}\n@media screen and (prefers-color-scheme:dark){{{_theme('dark')}}}{_PAGE}{_tones()}\n"

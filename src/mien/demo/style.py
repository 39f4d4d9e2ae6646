"""What the page looks like: the colours of `mien.faces.look` in gradio's words, and our own style."""

from typing import Any

from mien.faces.look import DARK, FONT, LIGHT

_COLOURS = {
    "paper": "body_background_fill",
    "card": "background_fill_primary block_background_fill button_secondary_background_fill input_background_fill "
    "block_label_background_fill",
    "track": "background_fill_secondary button_secondary_background_fill_hover",
    "line": "border_color_primary block_border_color input_border_color button_secondary_border_color",
    "ink": "body_text_color block_title_text_color button_secondary_text_color",
    "soft": "body_text_color_subdued block_label_text_color block_info_text_color input_placeholder_color",
    "accent": "button_primary_background_fill button_primary_background_fill_hover color_accent border_color_accent "
    "link_text_color link_text_color_active link_text_color_hover link_text_color_visited slider_color "
    "checkbox_background_color_selected loader_color",
    "on-accent": "button_primary_text_color",
}
"""What gradio calls the places of each colour."""


def theme(gradio: Any) -> Any:
    """gradio's theme in these colours, light and dark, with the fonts of the system."""
    dark = "{}_dark"
    base = gradio.themes.Default(font=FONT, font_mono="monospace")
    known = vars(base)
    places = [(place, name) for name, listed in _COLOURS.items() for place in listed.split()]
    light = {place: LIGHT[name] for place, name in places}
    return base.set(
        **light,
        **{dark.format(place): DARK[name] for place, name in places if dark.format(place) in known},
        color_accent_soft=LIGHT["track"],
        color_accent_soft_dark=DARK["track"],
    )


STYLE = (
    f".gradio-container {{ --wrong: {LIGHT['wrong']} }} .dark, .dark .gradio-container {{ --wrong: {DARK['wrong']}; "
    f"--color-accent: {DARK['accent']} }}"
    + """
.gradio-container .app { width: 100%; max-width: 1120px !important; margin: 0 auto !important; box-sizing: border-box }
.gradio-container [role=tab][aria-selected=true], .upload-container .or { color: var(--body-text-color) !important }
.mien-plain, .mien-plain > * { padding: 0 }
#mien-title h1 { margin: 0 0 .25rem; font-size: 1.9rem; letter-spacing: -.02em }
#mien-title p { margin: 0; max-width: 46em }
.mien-limits { margin-top: .5rem !important; padding-left: .75rem; border-left: 3px solid var(--wrong) }
.mien-examples { gap: .5rem }
.mien-examples button { flex: 1 1 30%; min-width: 0; height: auto; align-self: stretch; padding: .35rem;
    white-space: nowrap }
.mien-examples img { width: 2.2rem; height: 2.2rem; object-fit: cover; border-radius: 4px }

#mien-clip :is([aria-label^='Trim'], [aria-label^='Reset']) { display: none }  /* it would be fetched from elsewhere */
.mien-problem { margin: 0; padding: .75rem 1rem; border-radius: 8px; border: 1px solid var(--wrong);
    color: var(--body-text-color); background: color-mix(in srgb, var(--wrong) 14%, transparent);
    overflow-wrap: anywhere }
.mien-hint { display: grid; place-items: center; min-height: 300px; margin: 0; padding: 1rem; text-align: center;
    border: 1px dashed var(--border-color-primary); border-radius: 8px }
.mien-note { max-width: 46em }

.mien-photograph { position: relative; width: min(100%, calc(55vh * var(--ratio))); min-width: min(100%, 14rem);
    margin: 0 auto; line-height: 0; isolation: isolate }
.mien-photograph img { width: 100%; border-radius: 8px }
.mien-face { position: absolute; box-sizing: border-box; padding: 0; cursor: pointer; background: none;
    transition: none !important; border: 2px solid var(--expression); border-radius: 4px; outline: 1.5px solid #000;
    box-shadow: inset 0 0 0 1.5px #000 }
.mien-face[aria-pressed=true] { border-width: 4px }
.mien-face:focus-visible { outline: 3px solid var(--body-text-color); outline-offset: 3px }
.mien-face span { position: absolute; padding: 0 .4em; white-space: nowrap; font: 700 .85rem/1.5 var(--font);
    left: -2px; bottom: calc(100% + 5px); background: var(--expression); border-radius: 4px;
    box-shadow: 0 0 0 1.5px #000; z-index: 1 }
.mien-face span[style] { bottom: auto }
.mien-face span, .mien-face span b { color: var(--on) !important }
.mien-face .short { padding: 0 .25em; font-size: .75rem }
.mien-face .short b { display: none }
.mien-face .crowded { visibility: hidden }
.mien-face:is(:hover, :focus-visible) { z-index: 2 }
.mien-face:is(:hover, :focus-visible, [aria-pressed=true]) .crowded { visibility: visible }

.mien-faces { display: flex; flex-wrap: wrap; gap: .5rem; max-height: 14rem; padding: 4px; overflow-y: auto }
.mien-faces button { width: 5.6rem; padding: .2rem; cursor: pointer; border-radius: 8px; text-align: left;
    border: 1px solid var(--border-color-primary); border-bottom: 5px solid var(--expression);
    background: var(--background-fill-primary) }
.mien-faces button[aria-pressed=true], .mien-faces button:focus-visible { outline: 3px solid var(--color-accent);
    outline-offset: 1px }
.mien-faces img { display: block; width: 100%; margin: 0; border-radius: 4px }
.mien-faces span { display: block; overflow: hidden; font-size: .75rem; line-height: 1.5; white-space: nowrap;
    text-overflow: ellipsis; color: var(--body-text-color) }

table.mien-bars { width: 100%; max-width: 46rem; margin: 0; border: 0 !important; border-collapse: collapse;
    font-variant-numeric: tabular-nums }
.mien-bars caption { text-align: left; padding-bottom: .5rem; font-size: 1.05rem }
.mien-bars tr, .mien-bars th, .mien-bars td { border: 0; padding: .2rem 0; background: none }
.mien-bars th { width: 6.5rem; text-align: left; font-weight: 400 }
.mien-bars .best th, .mien-bars .best td { font-weight: 700 }
.mien-bars td:last-child { width: 5.5rem; text-align: right; white-space: nowrap }
.mien-bars td span { display: block; min-width: 2px; height: 1.05rem; border-radius: 3px;
    box-shadow: inset 0 0 0 1px rgb(0 0 0 / .35) }
.mien-bars td:nth-child(2) { background: color-mix(in srgb, var(--body-text-color) 8%, transparent);
    background-clip: content-box }
.mien-answers { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; max-width: 46rem;
    margin: 1rem 0 0; padding-top: .75rem; border-top: 1px solid var(--border-color-primary);
    font-variant-numeric: tabular-nums }
.mien-answers dt::first-letter { text-transform: uppercase }
.mien-answers dd { margin: 0; overflow-wrap: anywhere }

.mien-downloads { margin: 1rem 0 0 }
.mien-downloads a { margin-right: .75rem; text-decoration: underline }

.mien-panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
    margin: .75rem 0 }
.mien-panels figure { margin: 0 }
.mien-panels img { display: block; width: 100%; border: 1px solid var(--border-color-primary); border-radius: 4px }
.mien-panels figcaption { padding-top: .2rem; font-size: .85rem }
.mien-two { grid-template-columns: repeat(auto-fit, minmax(9.5rem, 14rem)) }
.mien-scale { display: flex; gap: .4rem; align-items: center; margin: .2rem 0 }
.mien-scale img { height: .6rem; width: auto; flex: 1; min-width: 0 }
.mien-panels + details, details + details { margin-top: .5rem }
summary { cursor: pointer }

.mien-reading { display: flex; align-items: center; gap: .75rem }
.mien-reading progress { width: 14rem; max-width: 50%; accent-color: var(--color-accent) }
.mien-legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .25rem 0 .75rem !important;
    padding: 0 !important; list-style: none !important }
.mien-legend li { margin: 0 !important; padding: 0 }
.mien-legend li::before { content: ""; display: inline-block; width: .8em; height: .8em; margin-right: .4em;
    vertical-align: -.05em; background: var(--expression); box-shadow: inset 0 0 0 1px rgb(0 0 0 / .35) }
.mien-timeline h3 { margin: .75rem 0 .25rem !important; font-size: 1rem }
.mien-timeline section p { margin: .25rem 0 0 }
.mien-thumbnail { float: left; width: 3rem; height: 3rem; margin: 0 .75rem .25rem 0 !important; border-radius: 4px }
.mien-timeline section { clear: both }
.mien-strip { position: relative; height: 3rem; overflow: hidden; cursor: pointer; border-radius: 4px;
    background: repeating-linear-gradient(135deg, transparent 0 6px, var(--border-color-primary) 6px 7px);
    box-shadow: inset 0 0 0 1px var(--border-color-primary) }
.mien-strip img { position: absolute; top: 0; height: 100%; max-width: none; margin: 0; image-rendering: pixelated }
.mien-strip::after { content: ""; position: absolute; top: 0; bottom: 0; left: var(--at, 0); width: 2px;
    background: var(--body-text-color); box-shadow: 0 0 0 1px var(--background-fill-primary) }
"""
)

NARROW = """
@media (max-width: 30rem) { .gradio-container .app { padding: .75rem !important } }
"""
"""What differs where there is little room: apart, since gradio drops or confines rules within others."""

NAMED = """new MutationObserver(() => document.querySelectorAll('.upload-container[aria-label]')
    .forEach(button => button.removeAttribute('aria-label')))
    .observe(document, {childList: true, subtree: true, attributeFilter: ['aria-label']});"""
"""JavaScript: what can be pressed to choose a file is called by the words on it; gradio calls it something else."""

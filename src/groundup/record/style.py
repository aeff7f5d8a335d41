"""The look of the report: one stylesheet, light and dark, for wide and narrow screens and for paper."""

STYLESHEET = """
:root {
  color-scheme: light;
  --paper: #fbfaf6; --panel: #f3f0e8; --ink: #1d1c19; --soft: #6e695e; --line: #e3ded2;
  --tone-a: #2c6e4f; --tone-b: #bf6a35; --tone-c: #41659a; --tone-d: #9a7f1c;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, Charter, Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    color-scheme: dark;
    --paper: #161512; --panel: #201e1a; --ink: #ebe7dd; --soft: #a09988; --line: #34312a;
    --tone-a: #7fc8a0; --tone-b: #e69a68; --tone-c: #93b4e6; --tone-d: #d8be62;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 var(--sans); font-variant-numeric: tabular-nums;
}
main, header, footer, nav > div { max-width: 1120px; margin: 0 auto; padding: 0 clamp(1.1rem, 4vw, 2.5rem); }
h1, h2 { font-family: var(--serif); font-weight: 500; line-height: 1.15; margin: 0; text-wrap: balance; }
h3 { font-size: .94rem; font-weight: 600; margin: 2.4rem 0 .8rem; }
h3 .soft { font-weight: 400; }
h3:first-child { margin-top: .2rem; }
p { margin: 0 0 1rem; max-width: 66ch; }
a { color: inherit; text-decoration-color: var(--line); text-underline-offset: .2em; }
a:hover { text-decoration-color: currentColor; }
code, pre, .mono { font-family: var(--mono); font-size: .84em; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.fine { color: var(--soft); font-size: .85rem; }

header { padding-top: clamp(2.5rem, 7vw, 5rem); padding-bottom: 2.6rem; }
header .kind {
  color: var(--tone-a); font-size: .82rem; letter-spacing: .09em; text-transform: uppercase;
  margin: 0 0 .9rem;
}
h1 { font-size: clamp(2.6rem, 7vw, 4.6rem); letter-spacing: -.02em; overflow-wrap: anywhere; }
header .lede {
  font: 1.26rem/1.5 var(--serif); color: var(--ink); margin: 1.3rem 0 2.2rem; max-width: 52ch;
  text-wrap: pretty;
}
.stages {
  display: flex; flex-wrap: wrap; gap: .45rem 1.3rem; list-style: none; margin: 1.8rem 0 0; padding: 0;
  font-size: .88rem;
}
.stages li { color: var(--soft); }
.stages li::before { content: "○"; margin-right: .45em; }
.stages li.done { color: var(--ink); }
.stages li.done::before { content: "●"; color: var(--tone-a); }

nav {
  position: sticky; top: 0; z-index: 1; background: var(--paper); border-block: 1px solid var(--line);
  font-size: .88rem;
}
nav > div { display: flex; gap: 1.5rem; overflow-x: auto; scrollbar-width: none; }
nav a { text-decoration: none; color: var(--soft); padding: .7rem 0; white-space: nowrap; }
nav a:hover { color: var(--ink); }

section {
  display: grid; grid-template-columns: minmax(0, 13rem) minmax(0, 1fr); gap: 0 3.5rem; padding: 3.4rem 0;
  scroll-margin-top: 2.6rem;
}
section + section { border-top: 1px solid var(--line); }
section h2 { font-size: 1.7rem; letter-spacing: -.01em; }
section > div:first-child p { color: var(--soft); font-size: .88rem; line-height: 1.5; margin: .9rem 0 0; }

.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: 1.5rem 1.6rem;
  margin: 0 0 2rem;
}
.tiles div { border-top: 2px solid var(--ink); padding-top: .55rem; }
.tiles dt { color: var(--soft); font-size: .82rem; }
.tiles dd { margin: 0; }
.tiles .figure { font: 1.9rem/1.25 var(--serif); letter-spacing: -.01em; white-space: nowrap; }
.tiles .figure small { font-size: .55em; letter-spacing: 0; color: var(--soft); }
.tiles .note { color: var(--soft); font-size: .82rem; line-height: 1.4; display: block; }
header .tiles { grid-template-columns: repeat(auto-fit, minmax(8.9rem, 1fr)); margin: 0; }
header .tiles .figure { font-size: 2.15rem; }
header .command { display: inline-block; margin: 2.2rem 0 0; }

.scroll { overflow-x: auto; margin-bottom: 1.4rem; }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
th { text-align: left; font-weight: 400; color: var(--soft); font-size: .82rem; vertical-align: bottom; }
th, td { padding: .55rem 1.3rem .55rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
tr.total td { border-bottom: 0; font-weight: 600; }
.number { text-align: right; }
td.number { white-space: nowrap; }
th .pill { display: block; width: max-content; margin: .15rem 0 0 auto; }
td .path { font-size: .8rem; overflow-wrap: anywhere; }
td .example { color: var(--soft); max-height: 4.8em; overflow: hidden; min-width: 12rem; }
.share {
  display: block; height: 3px; margin-top: .35rem; background: var(--tone-b); border-radius: 2px;
  min-width: 2px;
}

.pill {
  display: inline-block; font-size: .7rem; line-height: 1.5; padding: 0 .5em; border-radius: 1em;
  vertical-align: .08em; white-space: nowrap;
}
.pill.measured { color: var(--tone-a); box-shadow: inset 0 0 0 1px currentColor; }
.pill.estimated { color: var(--tone-b); border: 1px dashed currentColor; }

.strip { display: flex; height: 1.5rem; gap: 2px; margin: .2rem 0 .7rem; }
.strip span { border-radius: 2px; min-width: 2px; background: var(--tone-a); }
.key {
  display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; margin: 0 0 1.4rem; padding: 0;
  font-size: .85rem;
}
.key li::before {
  content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .5em;
  background: var(--tone-a);
}
.strip .tone-b, .key .tone-b::before { background: var(--tone-b); }
.strip .tone-c, .key .tone-c::before { background: var(--tone-c); }
.strip .tone-d, .key .tone-d::before { background: var(--tone-d); }
.strip .tone-e, .key .tone-e::before { background: var(--soft); }
.strip .tone-f, .key .tone-f::before { background: var(--line); }

figure { margin: 0 0 1.6rem; }
figcaption { font-size: .88rem; margin-bottom: .5rem; }
figcaption .key { margin: .15rem 0 0; color: var(--soft); }
.several { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: 0 2rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 12px var(--sans); }
.narrow { display: none; }
svg text { fill: var(--ink); }
svg .tick, svg .id { fill: var(--soft); }
svg .id { font: 11px var(--mono); }
svg .grid { stroke: var(--line); }
svg .curve { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--tone); }
svg .curve.faint { stroke-width: 1; opacity: .55; }
svg .dot, svg .bar { fill: var(--tone); }
svg .dot { stroke: var(--paper); stroke-width: 2; }
svg .tone-a { --tone: var(--tone-a); } svg .tone-b { --tone: var(--tone-b); }
svg .tone-c { --tone: var(--tone-c); } svg .tone-d { --tone: var(--tone-d); }
svg .tone-e { --tone: color-mix(in srgb, var(--soft) 55%, var(--paper)); }
.several .curve { stroke-width: 1.3; }
svg .track { fill: var(--panel); }
svg .whisker { stroke: var(--ink); stroke-width: 1.5; fill: none; }
svg .halo { stroke: var(--paper); stroke-width: 4; stroke-linecap: square; fill: none; }
svg .value { font-weight: 600; }
svg .box { fill: var(--panel); stroke: var(--line); }
svg .box.external { fill: none; stroke: var(--soft); stroke-dasharray: 3 3; }
svg .edge { fill: none; stroke: var(--soft); stroke-width: 1.2; }

.tokens {
  font: .84rem/2 var(--mono); overflow-wrap: anywhere; background: var(--panel); border-radius: 6px;
  padding: .7rem 1rem; margin-bottom: .7rem;
}
.tokens span {
  padding: .22em 0; border-radius: 3px; white-space: pre-wrap; box-decoration-break: clone;
  -webkit-box-decoration-break: clone;
}
.tokens span:nth-child(4n+1) { background: color-mix(in srgb, var(--tone-a) 22%, transparent); }
.tokens span:nth-child(4n+2) { background: color-mix(in srgb, var(--tone-b) 22%, transparent); }
.tokens span:nth-child(4n+3) { background: color-mix(in srgb, var(--tone-c) 22%, transparent); }
.tokens span:nth-child(4n+4) { background: color-mix(in srgb, var(--tone-d) 24%, transparent); }

.samples { list-style: none; margin: 0 0 2rem; padding: 0; }
.samples li {
  display: grid; grid-template-columns: 5.2rem minmax(0, 1fr); gap: 0 1.2rem; padding: .8rem 0;
  border-bottom: 1px solid var(--line);
}
.samples .step { color: var(--soft); font-size: .82rem; }
.samples b { font-weight: 600; }

.command {
  background: var(--panel); border-left: 3px solid var(--tone-a); border-radius: 0 6px 6px 0;
  padding: .85rem 1.1rem; margin: 0 0 .5rem; font-size: .95rem;
}
.command + p { font-size: .88rem; color: var(--soft); margin-bottom: 1.5rem; }
.trouble { border-left: 3px solid var(--tone-b); padding-left: 1rem; }
footer { color: var(--soft); font-size: .82rem; padding-bottom: 3rem; }

@media (max-width: 860px) {
  section { grid-template-columns: minmax(0, 1fr); padding: 2.4rem 0; }
  section > div:first-child { margin-bottom: 1.6rem; }
}
@media screen and (max-width: 640px) {
  .wide { display: none; }
  .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tiles .figure { font-size: 1.6rem; }
  header .tiles { grid-template-columns: 1fr 1fr; }
  header .tiles .figure { font-size: 1.8rem; }
  .samples li { grid-template-columns: minmax(0, 1fr); }
  .several figure { max-width: 17rem; }
}
@media print {
  :root { --paper: #fff; }
  .several { grid-template-columns: repeat(3, 1fr); }
  body { font-size: 10.5pt; }
  nav { display: none; }
  section { grid-template-columns: minmax(0, 1fr); padding: 1.6rem 0; }
  section > div:first-child { margin-bottom: 1rem; }
  figure, tr, .tiles div, .samples li { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .share, .strip span, .tokens span, .key li::before {
    print-color-adjust: exact; -webkit-print-color-adjust: exact;
  }
}
"""

"""How a report looks and the little that it does by itself: one sheet of style and one script, both inside the page."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1f;--soft:#6b6b76;--page:#fbfaf7;--card:#fff;--line:#e4e1d8;
--a:#b3452c;--b:#1f6f8b;--c:#7a6a1e;--good:#2f7d4f;--shade:#f3f1ea}
@media(prefers-color-scheme:dark){:root{--ink:#ececf1;--soft:#a2a2ad;--page:#16161a;--card:#1d1d22;--line:#2e2e37;
--a:#ef8e6c;--b:#74bfd8;--c:#d8c06a;--good:#7ccf9d;--shade:#212127}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:3rem 1.4rem 5rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,sans-serif;-webkit-text-size-adjust:100%}
h1{font-size:2rem;line-height:1.2;margin:.1rem 0 .3rem;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:1.15rem;margin:3rem 0 .9rem}h3{font-size:.95rem;margin:0;font-weight:600}
h3 small{font-weight:400;color:var(--soft);margin-left:.5em}
p{color:var(--soft);margin:.2rem 0 1rem;max-width:46rem}
.kind{color:var(--soft);font-size:.85rem;margin:0}
.badge{display:inline-block;border:1px solid var(--line);border-radius:1em;padding:.05em .7em;font-size:.8rem;
color:var(--soft);background:var(--card);vertical-align:middle;margin-left:.5rem;letter-spacing:0;font-weight:400;
white-space:nowrap}
.badge.done{color:var(--good);border-color:currentColor}
.way{height:5px;border-radius:3px;background:var(--line);margin:1rem 0 1.6rem;overflow:hidden}
.way i{display:block;height:100%;background:var(--a)}.way.done i{background:var(--good)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:1px;background:var(--line);
border:1px solid var(--line);border-radius:10px;overflow:hidden}
.tile{background:var(--card);padding:.8rem 1rem .9rem}
.tile span{display:block;font-size:.8rem;color:var(--soft)}
.tile b{display:block;font-size:1.45rem;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}
.tile em{font-style:normal;font-size:.8rem;color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:1.1rem;margin-top:1.1rem}
.plot,.view{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem .7rem}
.plot figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.1rem 1rem;padding-bottom:.5rem}
.keys{display:flex;flex-wrap:wrap;gap:0 1rem}.key{font-size:.8rem;color:var(--soft)}
.key b{color:var(--ink);font-weight:600;font-variant-numeric:tabular-nums}
.key i{display:inline-block;width:.9em;height:3px;border-radius:2px;background:currentColor;vertical-align:middle;
margin-right:.35em}
.key.a i{color:var(--a)}.key.b i{color:var(--b)}.key.c i{color:var(--c)}
.field{position:relative;height:8.5rem;margin:0 0 1.5rem 3.1rem;border-bottom:1px solid var(--line);
touch-action:pan-y}
.tall .field{height:19rem}
.field svg{position:absolute;inset:0;width:100%;height:100%;overflow:hidden}
.field path{fill:none;vector-effect:non-scaling-stroke;stroke-linejoin:round;stroke-linecap:round}
.raw{stroke-width:1;opacity:.28}.line{stroke-width:2}.dot{stroke-width:6}
path.a{stroke:var(--a)}path.b{stroke:var(--b)}path.c{stroke:var(--c)}
.grid line{stroke:var(--line);stroke-width:1;vector-effect:non-scaling-stroke}
.field .x,.field .y{position:absolute;white-space:nowrap;font-size:.72rem;line-height:1;color:var(--soft);
font-variant-numeric:tabular-nums}
.field .y{right:calc(100% + .5rem);transform:translateY(-50%)}.field .x{top:calc(100% + .45rem);
transform:translateX(-50%)}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);opacity:.6;pointer-events:none}
output{position:absolute;top:.3rem;z-index:1;background:var(--card);border:1px solid var(--line);border-radius:7px;
padding:.3rem .6rem;font-size:.78rem;line-height:1.45;pointer-events:none;white-space:nowrap;
font-variant-numeric:tabular-nums;
box-shadow:0 2px 10px #0002}
output .a{color:var(--a)}output .b{color:var(--b)}output .c{color:var(--c)}
.views{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.1rem}
.view img{display:block;width:100%;max-height:30rem;object-fit:contain;image-rendering:pixelated;border-radius:6px;
background:var(--shade)}
.view figcaption{display:flex;justify-content:space-between;font-size:.85rem;color:var(--soft);padding:.5rem .1rem 0}
.view figcaption b{color:var(--ink);font-weight:600}
.slide{display:flex;align-items:center;gap:1rem;margin:0 0 1rem}
.slide input{flex:1;accent-color:var(--a);min-width:0;height:1.6rem}
.slide label{font-size:.9rem;color:var(--soft);min-width:9rem;font-variant-numeric:tabular-nums}
.slide label b{color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:0 2.2rem}
.pair section>h2{margin-bottom:.4rem}
table{width:100%;border-collapse:collapse;font-size:.88rem}
th,td{text-align:left;vertical-align:top;padding:.32rem 0;border-bottom:1px solid var(--line)}
th{font-weight:400;color:var(--soft);padding-right:1rem;width:40%}td{overflow-wrap:anywhere;
font-variant-numeric:tabular-nums}
.times th{width:auto}.times th,.times td{padding-right:.9rem;white-space:nowrap}
.wide{overflow-x:auto}
details{margin-top:.9rem}summary{cursor:pointer;color:var(--soft);font-size:.9rem}
pre{overflow:auto;background:var(--shade);border-radius:8px;padding:.8rem 1rem;font-size:.8rem;line-height:1.5}
code{font-size:.88em;overflow-wrap:anywhere}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:1rem;color:var(--soft);font-size:.85rem}
:focus-visible{outline:2px solid var(--b);outline-offset:2px;border-radius:4px}
@media(max-width:30rem){body{padding:1.6rem 1rem 3rem}h1{font-size:1.5rem}.tall .field{height:13rem}
.tile{padding:.6rem .8rem .7rem}.tile b{font-size:1.2rem}.tiles{grid-template-columns:1fr 1fr}
.slide{flex-wrap:wrap;gap:.1rem 1rem}.slide input{flex-basis:100%}}
@media print{body{max-width:none;padding:0}.slide{display:none}}
"""

SCRIPT = """
for (const slide of document.querySelectorAll('.slide input')) {
  const steps = JSON.parse(document.getElementById('steps').textContent);
  const show = () => {
    const step = steps[slide.value];
    document.querySelector('.slide b').textContent = step.toLocaleString('en');
    slide.setAttribute('aria-valuetext', 'step ' + step);
    for (const view of document.querySelectorAll('.view')) {
      const own = JSON.parse(view.dataset.files);
      const at = Object.keys(own).map(Number).filter(s => s <= step).pop();
      if (at === undefined) continue;
      view.querySelector('img').src = own[at];
      view.querySelector('em').textContent = 'step ' + at.toLocaleString('en');
    }
  };
  slide.addEventListener('input', show);
  slide.closest('.slide').hidden = false;
}
for (const field of document.querySelectorAll('.field')) {
  const told = JSON.parse(field.querySelector('script').textContent);
  const cursor = field.querySelector('.cursor'), box = field.querySelector('output');
  const nearest = (points, x) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  field.addEventListener('pointermove', event => {
    const room = field.getBoundingClientRect();
    const share = Math.min(1, Math.max(0, (event.clientX - room.left) / room.width));
    const x = told.x[0] + share * (told.x[1] - told.x[0]);
    const found = told.s.map(s => [s, nearest(s.p, x)]);
    const step = found.map(f => f[1][0]).reduce((a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a);
    const left = (step - told.x[0]) / (told.x[1] - told.x[0]);
    cursor.style.left = 100 * left + '%';
    box.replaceChildren('step ' + step.toLocaleString('en'));
    for (const [s, p] of found) {
      const row = document.createElement('div'), name = document.createElement('span');
      name.className = s.t; name.textContent = s.n + ' ';
      row.append(name, String(p[1]) + (p[0] === step ? '' : ' (step ' + p[0].toLocaleString('en') + ')'));
      box.append(row);
    }
    box.style.left = left < .5 ? 'calc(' + 100 * left + '% + .6rem)' : '';
    box.style.right = left < .5 ? '' : 'calc(' + 100 * (1 - left) + '% + .6rem)';
    cursor.hidden = box.hidden = false;
  });
  field.addEventListener('pointerleave', () => { cursor.hidden = box.hidden = true; });
}
"""

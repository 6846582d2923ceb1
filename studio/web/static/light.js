// The large view of pictures: arrow keys and Esc, before and after, download, and what can be done with one.
const studio = window.studio = window.studio || {};
let box, list = [], at = 0, more = {};

function make(tag, fields, ...children) {
  const node = Object.assign(document.createElement(tag), fields);
  node.append(...children);
  return node;
}

function build() {
  box = make('dialog', {className: 'light'});
  box.setAttribute('aria-label', 'Picture, large');
  box.addEventListener('close', () => more.back?.()?.focus());
  box.addEventListener('click', (event) => { if (event.target === box) box.close(); });
  box.addEventListener('keydown', (event) => {
    if (event.target.type === 'range') return;  // the slider between before and after has the arrows
    const way = {ArrowLeft: -1, ArrowRight: 1, Home: -list.length, End: list.length}[event.key];
    if (!way) return;
    event.preventDefault();
    step(way);
  });
  document.body.append(box);
}

function step(way) {
  const next = Math.min(list.length - 1, Math.max(0, at + way));
  if (next === at) return;
  at = next;
  more.moved?.(at);
  draw();
}

function button(label, act, fields = {}) {
  const node = make('button', {type: 'button', className: 'quiet', textContent: label, ...fields});
  node.addEventListener('click', act);
  return node;
}

function picture(one) {
  const size = one.width ? {width: one.width, height: one.height} : {};
  const image = make('img', {src: one.src, alt: one.alt || one.caption || 'The picture', className: 'large', ...size});
  const frame = make('div', {className: 'frame'}, image);
  if (one.width) frame.style.setProperty('--ratio', one.width / one.height);
  if (!one.before) return [frame];
  const before = make('img', {src: one.before, alt: 'The picture before', className: 'before'});
  const slide = make('input', {type: 'range', min: 0, max: 100, value: 50});
  slide.setAttribute('aria-label', 'How much of the picture before is shown');
  const cut = () => { before.style.clipPath = `inset(0 ${100 - slide.value}% 0 0)`; };
  slide.addEventListener('input', cut);
  cut();
  frame.append(before);
  return [frame, make('label', {className: 'hint slide'}, 'before', slide, 'after')];
}

function draw() {
  const one = list[at], back = document.activeElement?.dataset?.way;
  const acts = more.acts.map(({label, act}) => button(typeof label === 'function' ? label(one) : label, () => { act(at); box.close(); }));
  const name = one.name || one.src.split('/').pop() + '.png';
  const load = make('a', {href: one.src, download: name, className: 'quiet', textContent: 'Download'});
  box.replaceChildren(
    make('div', {className: 'line'},
      make('b', {textContent: one.caption || '', translate: studio.ours(one.caption)}),
      make('span', {className: 'hint', textContent: `${at + 1} of ${list.length}`}),
      button('×', () => box.close(), {className: 'quiet close', title: 'Close (Esc)', ariaLabel: 'Close'})),
    ...picture(one),
    make('div', {className: 'line acts'},
      button('←', () => step(-1), {disabled: !at, ariaLabel: 'Previous picture', title: 'Previous (left arrow)'}),
      button('→', () => step(1), {disabled: at === list.length - 1, ariaLabel: 'Next picture', title: 'Next (right arrow)'}),
      ...acts, load));
  if (!box.open) box.showModal();
  if (!back) box.querySelector('.close').focus();
}

studio.light = {
  // pictures as in gallery.js; `acts` is a list of {label, act(index)}, `moved` is told the picture shown, `back` gives
  // the node that gets the focus afterwards.
  open(pictures, index, {acts = [], moved, back} = {}) {
    if (!box) build();
    [list, at, more] = [pictures, index, {acts, moved, back}];
    draw();
  },
};

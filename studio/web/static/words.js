// The words of the base as buttons that put them into the prompt, and what the prompt asks that it does not know.
// props.value is {base, things: {group: [...]}, colours, relations, known, kinds, plurals, nearest, learned}, empty lists where
// the base tells none; props.target is the selector of the prompt.
const [asked, some, all, groups] = ['.asked', '.some', '.all', '.groups'].map((one) => element.querySelector(one));
const FEW = 9, NEAR = 4, SHORT = 2;
const field = () => document.querySelector(props.target);
const value = () => props.value || {};
const PAUSE = 1200;  // milliseconds after which the word at the end is taken for whole
let before = null, since = 0, waits = false;

function chip(word, act, title) {
  const node = Object.assign(document.createElement('button'), {type: 'button', className: 'word', textContent: word, translate: false, title: title || `Put “${word}” into the prompt`});
  node.addEventListener('click', () => act(word));
  return node;
}

const article = (word) => (/^[aeiou]/.test(word) ? 'an ' : 'a ') + word;
function put(word) {
  const colour = (value().colours || []).includes(word), relation = (value().relations || []).includes(word);
  const prompt = field(), text = prompt.value.trimEnd(), empty = !text;
  const ended = relation || /\b(left of|right of|above|over|below|under|and|with|,)$/.test(text);
  const said = relation ? word : colour ? `on ${article(word)} background` : article(word);
  window.studio.say(prompt, empty ? said : relation || colour || ended ? `${text} ${said}` : `${text} and ${said}`);
}
function replace(wrong, right) {
  const prompt = field(), start = prompt.value.toLowerCase().indexOf(wrong.toLowerCase());
  if (start >= 0) window.studio.say(prompt, prompt.value.slice(0, start) + right + prompt.value.slice(start + wrong.length));
}

function near(word) {
  const told = value(), plain = word.replace(/s$/, '');
  const named = (told.nearest || {})[word] || (told.nearest || {})[plain];
  if (named) return [named];
  const kind = (told.kinds || {})[word] || (told.kinds || {})[plain];
  if (kind || (told.things || {})[word]) return told.things[kind || word].slice(0, NEAR);
  return window.studio.close(word, [...Object.values(told.things || {}).flat(), ...(told.colours || [])]).slice(0, 2);
}

function look() {
  const prompt = field();
  if (!prompt || (prompt.value === before && !(waits && performance.now() - since > PAUSE))) return;
  if (prompt.value !== before) since = performance.now();
  before = prompt.value;
  waits = false;
  const told = value(), lines = [];
  const say = (text, nodes, ours = true) => lines.push(Object.assign(document.createElement('span'), {textContent: text, translate: ours}), ...nodes, ' ');
  for (const word of new Set(before.match(/<[^<>\s:,()]{1,100}>/g) || [])) {
    if ((told.learned || []).includes(word)) continue;
    const meant = window.studio.close(word, told.learned || [])[0];
    say(`No concept has the word ${word}. ` + (meant ? 'Did you mean ' : 'Teach it first. '), meant ? [chip(meant, () => replace(word, meant), `Say ${meant} instead`)] : []);
  }
  const known = new Set(told.known || []), learned = (told.learned || []).map((one) => one.toLowerCase());
  if (known.size) {
    const said = before.replace(/<[^<>]*>/g, ' ').toLowerCase().match(/[\p{L}][\p{L}\p{N}'-]*/gu) || [];
    const missing = [...new Set(said)].filter((word) => word.length > SHORT && !known.has(word) && !learned.includes(word));
    const typed = document.activeElement === prompt && !/[\s,.]$/.test(before) && performance.now() - since < PAUSE;
    const typing = typed ? said.at(-1) : '';
    waits = typed && missing.includes(typing);
    const shown = missing.filter((word) => word !== typing);
    if (shown.length) {
      say(`${told.base} was never shown: `, []);
      shown.slice(0, 6).forEach((word) => say(word, near(word).map((one) => chip(one, () => replace(word, one), `Say ${one} instead of ${word}`)), false));
      if (shown.length > 6) say(`and ${shown.length - 6} more.`, []);
    }
  }
  asked.replaceChildren(...lines);
}

function group(name, words) {
  const node = document.createElement('p');
  node.append(Object.assign(document.createElement('b'), {textContent: name}), ...words.map((word) => chip(word, put)));
  return node;
}

function draw() {
  const told = value(), things = Object.entries(told.things || {});
  window.studio.words = told;
  all.hidden = !things.length;
  some.replaceChildren();
  if (things.length) {
    const count = things.reduce((sum, [, names]) => sum + names.length, 0);
    const first = things.map(([, names]) => names[0]).slice(0, FEW);
    some.append(`${told.base} draws ${count} things, one to three at a time: `, ...first.map((word) => chip(word, put)));
    all.querySelector('summary').textContent = `All ${count} things, ${told.colours.length} colours, and where things stand to each other`;
  }
  groups.replaceChildren(...things.map(([name, names]) => group(name, names)),
    ...(things.length ? [group('background', told.colours), group('between two', told.relations)] : []));
  before = null;
  look();
}
watch(['value', 'target'], draw);
draw();
const clock = setInterval(() => (element.isConnected ? look() : clearInterval(clock)), 400);

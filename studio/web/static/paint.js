// Marks a part of a picture. props.value is {id, picture, mask}: an id and two addresses of pictures.
const find = (selector) => element.querySelector(selector);
const under = find('.under'), over = find('.over'), easel = find('.easel'), size = find('input');
const SIDE = 384, NEAR = 48, TINT = [214, 64, 159];
const mask = document.createElement('canvas');
let tool = 'thing', from = null, last = null, shown = '';

// Until the picture and what was marked on it are there, nothing can be marked.
const busy = (wait) => easel.setAttribute('aria-busy', String(wait));
const ready = () => shown && easel.getAttribute('aria-busy') === 'false';

const pen = (canvas) => canvas.getContext('2d', {willReadFrequently: true});

function draw(preview) {
  const {width, height} = over, values = pen(mask).getImageData(0, 0, width, height), tint = pen(over).createImageData(width, height);
  for (let i = 0; i < values.data.length; i += 4) if (values.data[i] > 127) tint.data.set([...TINT, 150], i);
  pen(over).putImageData(tint, 0, 0);
  if (preview) { pen(over).fillStyle = 'rgba(214,64,159,.45)'; pen(over).fillRect(...preview); }
}

function commit() {
  props.value = {...props.value, mask: mask.toDataURL('image/png')};
  trigger('input');
}

function fill(colour, ...box) { pen(mask).fillStyle = colour; pen(mask).fillRect(...box); }

function stroke(x, y) {
  const ink = pen(mask);
  ink.strokeStyle = ink.fillStyle = tool === 'erase' ? '#000' : '#fff';
  ink.lineWidth = Number(size.value) / 100 * Math.max(mask.width, mask.height);
  ink.lineCap = 'round';
  ink.beginPath();
  ink.moveTo(...(last || [x, y]));
  ink.lineTo(x + 0.01, y);
  ink.stroke();
  last = [x, y];
}

// Places reached from `starts` through neighbours; `joins` says whether one belongs to the start it was reached from.
function reached(starts, width, height, joins) {
  const origin = new Int32Array(width * height).fill(-1), stack = [...starts];
  for (const at of stack) origin[at] = at;
  while (stack.length) {
    const at = stack.pop(), x = at % width;
    for (const next of [x > 0 ? at - 1 : -1, x < width - 1 ? at + 1 : -1, at - width, at + width])
      if (next >= 0 && next < origin.length && origin[next] < 0 && joins(origin[at], next)) { origin[next] = origin[at]; stack.push(next); }
  }
  return origin.map((from) => from < 0 ? 0 : 1);
}

// The thing that was clicked: all that is not joined to the picture's edge by like colours; or just that, if it was clicked.
function pick(x, y) {
  const {width, height} = under, pixels = pen(under).getImageData(0, 0, width, height).data;
  const like = (a, b) => Math.abs(pixels[4 * a] - pixels[4 * b]) + Math.abs(pixels[4 * a + 1] - pixels[4 * b + 1]) + Math.abs(pixels[4 * a + 2] - pixels[4 * b + 2]) < NEAR;
  const edge = [];
  for (let i = 0; i < width; i++) edge.push(i, (height - 1) * width + i);
  for (let i = 0; i < height; i++) edge.push(i * width, i * width + width - 1);
  const back = reached(edge, width, height, like), at = Math.floor(y) * width + Math.floor(x);
  const part = back[at] ? back : reached([at], width, height, (start, next) => !back[next]);
  const ink = pen(mask), reach = Math.max(1, Math.round(width / 64));
  ink.fillStyle = '#fff';
  for (let i = 0; i < part.length; i++)
    if (part[i]) ink.fillRect(i % width - reach, Math.floor(i / width) - reach, 2 * reach + 1, 2 * reach + 1);
}

function at(event) {
  const frame = over.getBoundingClientRect(), within = (x) => Math.min(0.9999, Math.max(0, x));
  return [within((event.clientX - frame.left) / frame.width) * over.width, within((event.clientY - frame.top) / frame.height) * over.height];
}

over.addEventListener('pointerdown', (event) => {
  if (event.button || !ready()) return;
  const [x, y] = from = at(event);
  over.setPointerCapture(event.pointerId);
  event.preventDefault();
  if (tool === 'thing') pick(x, y);
  else if (tool !== 'box') stroke(x, y);
  draw();
});
over.addEventListener('pointermove', (event) => {
  if (!from) return;
  const [x, y] = at(event);
  if (tool === 'box') draw([from[0], from[1], x - from[0], y - from[1]]);
  else if (tool !== 'thing') { stroke(x, y); draw(); }
});
function release(event) {
  if (!from) return;
  const [x, y] = at(event);
  if (tool === 'box') fill('#fff', from[0], from[1], x - from[0], y - from[1]);
  from = last = null;
  draw();
  commit();
}
over.addEventListener('pointerup', release);
over.addEventListener('pointercancel', release);

for (const button of element.querySelectorAll('[data-tool]')) button.addEventListener('click', () => {
  tool = button.dataset.tool;
  for (const one of element.querySelectorAll('[data-tool]')) one.setAttribute('aria-pressed', String(one === button));
});
for (const button of element.querySelectorAll('[data-do]')) button.addEventListener('click', () => {
  if (!ready()) return;
  fill(button.dataset.do === 'all' ? '#fff' : '#000', 0, 0, mask.width, mask.height);
  draw();
  commit();
});

// What was marked before is marked again, to go on from.
function earlier(address) {
  const image = new Image();
  image.onload = () => { pen(mask).drawImage(image, 0, 0, mask.width, mask.height); draw(); busy(false); };
  image.onerror = () => busy(false);
  image.src = address;
}

function load() {
  const picture = props.value?.picture || '';
  find('.easel p').textContent = picture ? '' : props.empty;
  easel.classList.toggle('bare', !picture);
  if (picture === shown) return;
  const given = props.value?.mask;
  shown = picture;
  busy(picture !== '');
  if (!picture) return;
  const image = new Image();
  image.onload = () => {
    if (picture !== shown) return;
    const scale = Math.min(1, SIDE / Math.max(image.width, image.height)) * Math.max(1, Math.round(SIDE / Math.max(image.width, image.height)));
    for (const canvas of [under, over, mask]) [canvas.width, canvas.height] = [Math.round(image.width * scale), Math.round(image.height * scale)];
    pen(under).drawImage(image, 0, 0, under.width, under.height);
    fill('#000', 0, 0, mask.width, mask.height);
    draw();
    if (given) earlier(given);
    else busy(false);
  };
  image.src = picture;
}
watch(['value', 'empty'], load);
load();

// The box editor. props.value is a list of {phrase, box: [left, top, right, bottom]} in fractions of the picture; those
// that are a part have a prompt of its own: {part, soft, avoid}, and if they were brushed {mask}, the address of a picture.
const find = (selector) => element.querySelector(selector);
const stage = find('.stage'), list = find('.list'), words = find('datalist');
const LIMIT = 30, LEAST = 0.04, NUDGE = 1 / 32, COLOURS = 8;
const CORNERS = {nw: [0, 1], ne: [2, 1], sw: [0, 3], se: [2, 3]};
words.id = 'words-' + Math.random().toString(36).slice(2);

const brush = find('[data-do=brush]'), wide = find('.wide'), WIDTH = 256;
let boxes = [], chosen = -1, drag = null, painted = -1;
const easels = new Map();  // address of a mask -> the canvas it was painted on

const within = (x) => Math.min(1, Math.max(0, x));
const tidy = (box) => box.map((x) => Math.round(within(x) * 1000) / 1000);
const copy = (value) => (value || []).map((one) => ({...one, box: [...(one.box || [0, 0, 1, 1])]}));
const commit = () => { props.value = copy(boxes); trigger('input'); };
const percent = (x) => Math.round(x * 100);
const painting = () => brush.getAttribute('aria-pressed') === 'true';

function said(one, index) {
  const [left, top, right, bottom] = one.box.map(percent);
  return `${one.mask ? 'Brushed part' : one.part ? 'Part' : 'Box'} ${index + 1}, ${one.phrase || 'not named yet'}: from ${left} to ${right} % across, ${top} to ${bottom} % down`;
}

function place(node, one, index) {
  const [left, top, right, bottom] = one.mask ? [0, 0, 1, 1] : one.box;
  node.classList.toggle('part', !!one.part);
  node.classList.toggle('brushed', !!one.mask);
  node.tabIndex = one.mask ? -1 : 0;
  node.querySelector('.paint').style.maskImage = one.mask ? `url(${one.mask})` : '';
  Object.assign(node.querySelector('.name').style, one.mask ? {left: 100 * one.box[0] + '%', top: 100 * one.box[1] + '%'} : {left: '', top: ''});
  Object.assign(node.style, {
    left: 100 * left + '%', top: 100 * top + '%', width: 100 * (right - left) + '%', height: 100 * (bottom - top) + '%',
  });
  node.classList.toggle('chosen', index === chosen);
  node.setAttribute('aria-label', said(one, index));
  node.querySelector('.name').textContent = one.phrase || '?';
}

function drawStage() {
  while (stage.children.length > boxes.length) stage.lastChild.remove();
  while (stage.children.length < boxes.length) {
    const node = document.createElement('div'), index = stage.children.length;
    node.className = 'box colour' + (index % COLOURS);
    node.setAttribute('role', 'group');
    node.dataset.index = index;
    node.innerHTML = '<span class="paint"></span><span class="name" translate="no"></span>' +
      Object.keys(CORNERS).map((corner) => `<span class="corner ${corner}" data-corner="${corner}"></span>`).join('');
    stage.append(node);
  }
  boxes.forEach((one, index) => place(stage.children[index], one, index));
}

// What only a part has: how soft its rim is, and what shall not be in it.
function details(index) {
  const line = Object.assign(document.createElement('div'), {className: 'details'}), one = boxes[index];
  const soft = Object.assign(document.createElement('input'), {type: 'range', min: 0, max: 0.5, step: 0.05, value: one.soft || 0});
  const avoid = Object.assign(document.createElement('input'), {value: one.avoid || '', placeholder: 'not in this part', maxLength: 400});
  soft.setAttribute('aria-label', `Soft rim of part ${index + 1}`);
  avoid.setAttribute('aria-label', `What is not in part ${index + 1}`);
  soft.addEventListener('change', () => { boxes[index].soft = Number(soft.value); commit(); });
  avoid.addEventListener('input', () => { boxes[index].avoid = avoid.value; commit(); });
  const label = Object.assign(document.createElement('label'), {className: 'hint', textContent: 'Soft rim '});
  label.append(soft);
  line.append(label, avoid);
  return line;
}

// Strokes of one brushed part go to a canvas of its own, white where it is.
function easel(one) {
  if (!easels.has(one.mask)) {
    const canvas = document.createElement('canvas');
    canvas.width = WIDTH;
    canvas.height = Math.max(1, Math.round(WIDTH * stage.clientHeight / Math.max(1, stage.clientWidth)));
    easels.set(one.mask, canvas);
  }
  return easels.get(one.mask);
}

function stroke(x, y) {
  const one = boxes[painted], canvas = easel(one), ink = canvas.getContext('2d'), radius = Number(wide.querySelector('input').value) / 200;
  ink.strokeStyle = '#fff';
  ink.lineWidth = 2 * radius * canvas.width;
  ink.lineCap = 'round';
  ink.beginPath();
  ink.moveTo(...(drag.last || [x * canvas.width, y * canvas.height]));
  drag.last = [x * canvas.width, y * canvas.height];
  ink.lineTo(drag.last[0] + 0.01, drag.last[1]);
  ink.stroke();
  easels.delete(one.mask);
  one.mask = canvas.toDataURL('image/png');
  easels.set(one.mask, canvas);
  delete one.file;  // it is another mask now
  const down = radius * canvas.width / canvas.height, reach = [x - radius, y - down, x + radius, y + down];
  one.box = tidy(one.box ? one.box.map((edge, i) => i < 2 ? Math.min(edge, reach[i]) : Math.max(edge, reach[i])) : reach);
  drawStage();
}

brush.addEventListener('click', () => {
  brush.setAttribute('aria-pressed', String(!painting()));
  wide.hidden = !painting();
  stage.classList.toggle('painting', painting());
  painted = -1;  // the next stroke begins another part
});

function drawList() {
  list.replaceChildren(...boxes.map((one, index) => {
    const row = document.createElement('li'), field = document.createElement('input'), remove = document.createElement('button');
    row.className = 'colour' + (index % COLOURS);
    field.value = one.phrase;
    field.placeholder = 'what is here?';
    field.maxLength = 200;
    field.setAttribute('list', words.id);
    field.setAttribute('aria-label', `What is in box ${index + 1}`);
    field.addEventListener('input', () => { boxes[index].phrase = field.value; drawStage(); commit(); });
    field.addEventListener('focus', () => choose(index));
    remove.type = 'button';
    remove.textContent = '×';
    remove.setAttribute('aria-label', `Remove box ${index + 1}`);
    remove.addEventListener('click', () => drop(index));
    const own = Object.assign(document.createElement('button'), {type: 'button', className: 'own', textContent: 'Own prompt'});
    own.setAttribute('aria-pressed', String(!!one.part));
    own.setAttribute('aria-label', `Own prompt for box ${index + 1}`);
    own.title = 'What is inside follows this prompt alone, and the weights of concepts it names act there alone';
    own.disabled = !!one.mask;
    own.addEventListener('click', () => { boxes[index].part = !boxes[index].part; choose(index); drawList(); commit(); list.children[index].querySelector('.own').focus(); });
    row.append(field, own, remove);
    if (one.part) row.append(details(index));
    return row;
  }));
  find('[data-do=clear]').disabled = !boxes.length;
  find('[data-do=add]').disabled = boxes.length >= LIMIT;
  find('.keys').hidden = !boxes.length;
}

function draw() {
  const width = Number(props.width) || 1, height = Number(props.height) || 1;
  stage.style.aspectRatio = width + ' / ' + height;
  words.replaceChildren(...(props.choices || []).map((word) => Object.assign(document.createElement('option'), {value: word})));
  drawStage();
  drawList();
}

function choose(index) { chosen = index; drawStage(); }

function add(box) {
  boxes.push({phrase: '', box: tidy(box)});
  chosen = boxes.length - 1;
  draw();
  commit();
  list.lastChild.querySelector('input').focus({preventScroll: true});
}

function drop(index) {
  boxes.splice(index, 1);
  chosen = painted = -1;
  draw();
  commit();
  (stage.lastChild || find('[data-do=add]')).focus({preventScroll: true});
}

function moved(box, x, y) {
  const dx = Math.min(1 - box[2], Math.max(-box[0], x)), dy = Math.min(1 - box[3], Math.max(-box[1], y));
  return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
}

function at(event) {
  const frame = stage.getBoundingClientRect();
  return [within((event.clientX - frame.left) / frame.width), within((event.clientY - frame.top) / frame.height)];
}

stage.addEventListener('pointerdown', (event) => {
  if (event.button) return;
  if (painting()) {
    if (painted < 0 && boxes.length >= LIMIT) return;
    if (painted < 0) painted = boxes.push({phrase: '', box: null, part: true, soft: 0.05, mask: ''}) - 1;
    drag = {brush: true};
    stage.setPointerCapture(event.pointerId);
    event.preventDefault();
    return stroke(...at(event));
  }
  const [x, y] = at(event), node = event.target.closest('.box'), corner = event.target.dataset.corner;
  if (node) {
    const index = Number(node.dataset.index), box = [...boxes[index].box];
    choose(index);
    node.focus({preventScroll: true});
    drag = corner ? {index, fixed: [box[2 - CORNERS[corner][0]], box[4 - CORNERS[corner][1]]]} : {index, box, from: [x, y]};
  } else if (boxes.length < LIMIT) {
    drag = {fixed: [x, y], fresh: true};
  }
  stage.setPointerCapture(event.pointerId);
  event.preventDefault();
});

stage.addEventListener('pointermove', (event) => {
  if (!drag) return;
  const [x, y] = at(event);
  if (drag.brush) return stroke(x, y);
  if (drag.fresh) {
    boxes.push({phrase: '', box: [x, y, x, y]});
    Object.assign(drag, {fresh: false, made: true, index: boxes.length - 1});
    chosen = drag.index;
  }
  const [a, b] = drag.fixed || [];
  boxes[drag.index].box = drag.fixed
    ? [Math.min(a, x), Math.min(b, y), Math.max(a, x), Math.max(b, y)]
    : moved(drag.box, x - drag.from[0], y - drag.from[1]);
  drawStage();
});

function release() {
  if (!drag) return;
  const {index, made, brush: brushed} = drag;
  drag = null;
  if (brushed) {
    const fresh = list.children.length < boxes.length;
    draw();
    commit();
    if (fresh) list.lastChild.querySelector('input').focus({preventScroll: true});
    return;
  }
  if (index === undefined) return choose(-1);
  const one = boxes[index], [left, top, right, bottom] = one.box;
  if (right - left < LEAST || bottom - top < LEAST) {
    if (made) boxes.pop();
    else one.box = [Math.min(left, 1 - LEAST), Math.min(top, 1 - LEAST), Math.max(right, left + LEAST), Math.max(bottom, top + LEAST)];
  }
  if (boxes[index]) boxes[index].box = tidy(boxes[index].box);
  draw();
  commit();
  if (made && boxes[index]) list.lastChild.querySelector('input').focus({preventScroll: true});
}
stage.addEventListener('pointerup', release);
stage.addEventListener('pointercancel', release);

stage.addEventListener('keydown', (event) => {
  const node = event.target.closest('.box');
  if (!node) return;
  const index = Number(node.dataset.index), box = boxes[index].box;
  const way = {ArrowLeft: [-NUDGE, 0], ArrowRight: [NUDGE, 0], ArrowUp: [0, -NUDGE], ArrowDown: [0, NUDGE]}[event.key];
  if (way && event.shiftKey) {
    boxes[index].box = tidy([box[0], box[1], Math.max(box[0] + LEAST, box[2] + way[0]), Math.max(box[1] + LEAST, box[3] + way[1])]);
  } else if (way) {
    boxes[index].box = tidy(moved(box, ...way));
  } else if (event.key === 'Delete' || event.key === 'Backspace') {
    event.preventDefault();
    return drop(index);
  } else if (event.key === 'Enter') {
    event.preventDefault();
    return list.children[index].querySelector('input').focus();
  } else return;
  event.preventDefault();
  choose(index);
  commit();
});
stage.addEventListener('focusin', (event) => {
  const node = event.target.closest('.box');
  if (node && !drag) choose(Number(node.dataset.index));
});

find('[data-do=add]').addEventListener('click', () => {
  const shift = (boxes.length % 4) * 0.08;
  add([0.1 + shift, 0.25 + shift, 0.45 + shift, 0.6 + shift]);
});
find('[data-do=clear]').addEventListener('click', () => { boxes = []; chosen = painted = -1; draw(); commit(); });

// A mask that came with the value is painted on, not painted over.
function loadMasks() {
  for (const one of boxes.filter((each) => each.mask && !easels.has(each.mask))) {
    const canvas = easel(one), image = new Image();
    image.onload = () => {
      const ink = canvas.getContext('2d');
      ink.drawImage(image, 0, 0, canvas.width, canvas.height);
    };
    image.src = one.mask;
  }
}

const load = () => { boxes = copy(props.value); chosen = painted = -1; loadMasks(); draw(); };
watch(['value', 'choices', 'width', 'height'], load);
load();

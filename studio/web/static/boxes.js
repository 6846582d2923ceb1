// The box editor. props.value is a list of {phrase, box: [left, top, right, bottom]} in fractions of the picture.
const find = (selector) => element.querySelector(selector);
const stage = find('.stage'), list = find('.list'), words = find('datalist');
const LIMIT = 30, LEAST = 0.04, NUDGE = 1 / 32, COLOURS = 8;
const CORNERS = {nw: [0, 1], ne: [2, 1], sw: [0, 3], se: [2, 3]};
words.id = 'words-' + Math.random().toString(36).slice(2);

let boxes = [], chosen = -1, drag = null;

const within = (x) => Math.min(1, Math.max(0, x));
const tidy = (box) => box.map((x) => Math.round(within(x) * 1000) / 1000);
const copy = (value) => (value || []).map((one) => ({...one, box: [...one.box]}));
const commit = () => { props.value = copy(boxes); trigger('input'); };
const percent = (x) => Math.round(x * 100);

function said(one, index) {
  const [left, top, right, bottom] = one.box.map(percent);
  return `Box ${index + 1}, ${one.phrase || 'not named yet'}: from ${left} to ${right} % across, ${top} to ${bottom} % down`;
}

function place(node, one, index) {
  const [left, top, right, bottom] = one.box;
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
    node.tabIndex = 0;
    node.setAttribute('role', 'group');
    node.dataset.index = index;
    node.innerHTML = '<span class="name"></span>' +
      Object.keys(CORNERS).map((corner) => `<span class="corner ${corner}" data-corner="${corner}"></span>`).join('');
    stage.append(node);
  }
  boxes.forEach((one, index) => place(stage.children[index], one, index));
}

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
    row.append(field, remove);
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
  chosen = -1;
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
  const {index, made} = drag;
  drag = null;
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
find('[data-do=clear]').addEventListener('click', () => { boxes = []; chosen = -1; draw(); commit(); });

const load = () => { boxes = copy(props.value); chosen = -1; draw(); };
watch(['value', 'choices', 'width', 'height'], load);
load();

// Pictures to learn from. props.value is a list of {name, picture, caption, left, right, mask}; props.pairs asks for two names.
const frame = element.querySelector('.rows');

function field(index, key, label, placeholder) {
  const text = props.value[index][key] || '', lines = text.split('\n').length;
  const node = document.createElement(lines > 1 ? 'textarea' : 'input');
  if (lines > 1) node.rows = Math.min(lines, 6);
  node.value = text;
  node.placeholder = placeholder;
  node.maxLength = key === 'caption' ? 4000 : 60;
  node.setAttribute('aria-label', `${label} of picture ${index + 1}`);
  node.addEventListener('change', () => {
    props.value = props.value.map((one, at) => at === index ? {...one, [key]: node.value} : {...one});
    trigger('input');
  });
  return node;
}

function act(one, what, sign, label) {
  const node = Object.assign(document.createElement('button'), {type: 'button', textContent: sign, title: label});
  node.setAttribute('aria-label', `${label} ${one.name}`);
  node.addEventListener('click', () => trigger('act', {name: one.name, what}));
  return node;
}

function small(one, index) {
  const node = document.createElement('span');
  node.className = 'small';
  node.append(Object.assign(document.createElement('img'), {src: one.picture, alt: `Picture ${index + 1}`}));
  if (one.mask) {
    const badge = Object.assign(document.createElement('b'), {textContent: 'mask', title: 'Has a mask'});
    badge.setAttribute('role', 'img');
    badge.setAttribute('aria-label', `${one.name} has a mask`);
    node.append(badge);
  }
  return node;
}

function row(one, index) {
  const node = document.createElement('li'), words = document.createElement('div');
  words.className = 'words';
  words.append(...(props.pairs
    ? [field(index, 'left', 'First thing', 'first thing, e.g. cat'), field(index, 'right', 'Second thing', 'second thing, e.g. box')]
    : [field(index, 'caption', 'Caption', 'caption (may stay empty)')]));
  node.append(small(one, index), words, act(one, 'mark', '◐', 'Mask or crop'),
    act(one, 'turn', '⟳', 'Turn'), act(one, 'square', '⬚', 'Crop to a square'), act(one, 'remove', '×', 'Remove'));
  return node;
}

const draw = () => frame.replaceChildren(...(props.value || []).map(row));
watch(['value', 'pairs'], draw);
draw();

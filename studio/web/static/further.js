// Further prompts. props.value is a list of {prompt, weight, negative_prompt}; above 0 is also there, below 0 is not.
const all = element.querySelector('.all'), add = element.querySelector('[data-do=add]');
const copy = () => (props.value || []).map((one) => ({...one}));
element.querySelector('.further').setAttribute('aria-label', props.title);
element.querySelector('b').textContent = props.title;

function change(index, fields) {
  const value = copy();
  Object.assign(value[index], fields);
  commit(value);
}

function commit(value) {
  props.value = value;
  trigger('input');
}

function row(one, index) {
  const node = Object.assign(document.createElement('div'), {className: 'row'});
  const text = Object.assign(document.createElement('input'), {type: 'text', value: one.prompt || '', maxLength: 2000, placeholder: 'a house, or with a weight below 0 what shall not be there'});
  const weight = Object.assign(document.createElement('input'), {type: 'number', value: one.weight ?? 1, min: -5, max: 5, step: 0.1});
  const remove = Object.assign(document.createElement('button'), {type: 'button', textContent: '×'});
  text.setAttribute('aria-label', `Further prompt ${index + 1}`);
  weight.setAttribute('aria-label', `Weight of further prompt ${index + 1}`);
  remove.setAttribute('aria-label', `Remove further prompt ${index + 1}`);
  text.addEventListener('input', () => change(index, {prompt: text.value}));
  weight.addEventListener('input', () => { if (weight.value !== '') change(index, {weight: Number(weight.value)}); });
  remove.addEventListener('click', () => { const value = copy(); value.splice(index, 1); commit(value); draw(); add.focus(); });
  node.append(text, weight, remove);
  return node;
}

function draw() {
  const value = props.value || [];
  add.disabled = value.length >= props.most;
  // While somebody types, what is there stays: the value that comes back is what was typed.
  const there = [...all.querySelectorAll('input')].map((one) => one.value), now = value.flatMap((one) => [one.prompt || '', String(one.weight ?? 1)]);
  if (there.join('\n') === now.join('\n') && all.children.length === value.length) return;
  if (all.contains(document.activeElement) && all.children.length === value.length) return;
  all.replaceChildren(...value.map(row));
}
add.addEventListener('click', () => { commit([...copy(), {prompt: '', weight: 1}]); draw(); all.lastChild.querySelector('input').focus(); });
watch('value', draw);
draw();

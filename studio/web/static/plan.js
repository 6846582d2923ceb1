// How many pictures, of which size, from which seed. props.value is {count, size, seed, keep}; props.counts and
// props.sizes, a list of [value, label], are offered.
const [count, size, seed, keep] = ['.count', '.size select', '.seed input', '.keep input'].map((one) => element.querySelector(one));
const option = ([value, text]) => Object.assign(document.createElement('option'), {value, textContent: text});

function change(fields) {
  props.value = {...props.value, ...fields};
  trigger('input', fields);
}

function draw() {
  const value = props.value || {}, counts = [...(props.counts || [1])];
  if (value.count && !counts.includes(value.count)) counts.push(value.count);
  count.replaceChildren(...counts.sort((a, b) => a - b).map((one) => option([one, one])));
  count.value = value.count ?? 1;
  size.replaceChildren(...(props.sizes || []).map(option));
  size.value = value.size ?? '';
  size.closest('label').hidden = !(props.sizes || []).length;
  if (document.activeElement !== seed) seed.value = value.seed ?? '';
  seed.placeholder = 'random';
  keep.checked = !!value.keep;
}
count.addEventListener('change', () => change({count: Number(count.value)}));
size.addEventListener('change', () => { change({size: size.value}); trigger('select', {size: size.value}); });
seed.addEventListener('input', () => {
  const given = seed.value !== '';
  keep.checked = given;  // who types a seed wants that one
  change({seed: given ? Number(seed.value) : null, keep: given});
});
keep.addEventListener('change', () => change({keep: keep.checked}));
watch(['value', 'counts', 'sizes'], draw);
draw();

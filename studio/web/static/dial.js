// A number with a slider. props.value is a number, or null where the base decides, which is offered if props.open is set;
// minimum and maximum are what is allowed, low and high the ends of the slider.
const [label, auto, number, range] = ['label', '.auto', '[type=number]', '[type=range]'].map((one) => element.querySelector(one));
number.id = 'dial-' + Math.random().toString(36).slice(2);
label.htmlFor = number.id;

function change(value) {
  props.value = value;
  draw();
  trigger('input');
  trigger('change');
}

function draw() {
  const unset = props.value === null || props.value === undefined || props.value === '';
  label.textContent = props.title;
  Object.assign(number, {min: props.minimum ?? '', max: props.maximum ?? '', step: 'any', placeholder: 'auto'});
  if (document.activeElement !== number) number.value = unset ? '' : props.value;
  Object.assign(range, {min: props.low, max: props.high, step: props.step});
  range.value = unset ? props.start : props.value;
  range.setAttribute('aria-label', `${props.title}, slider`);
  range.classList.toggle('unset', unset);
  auto.hidden = !props.open || unset;
  auto.setAttribute('aria-label', `${props.title}: leave it to the base`);
}
range.addEventListener('input', () => { number.value = range.value; range.classList.remove('unset'); });
range.addEventListener('change', () => change(Number(range.value)));
number.addEventListener('input', () => { if (number.value !== '') range.value = number.value; });
number.addEventListener('change', () => change(number.value === '' ? (props.open ? null : props.start) : Number(number.value)));
auto.addEventListener('click', () => { change(null); number.focus(); });
watch(['value', 'start', 'low', 'high', 'label'], draw);
draw();

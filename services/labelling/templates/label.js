'use strict';
// What is chosen is kept in this browser, under a name made of the records' ids, and saved as a CSV of id, purpose and label.
const records = [...document.querySelectorAll('.record')];
const save = document.getElementById('save');
const place = 'm2can-labels ' + records.map(record => record.dataset.id).join('\n');
const cell = text => '"' + text.replaceAll('"', '""') + '"';
const chosen = record => record.querySelector('input:checked')?.value ?? '';

function table() {
  const rows = records.filter(chosen).map(record => [record.dataset.id, record.dataset.purpose, chosen(record)]);
  return [['id', 'purpose', 'label'], ...rows].map(row => row.map(cell).join(',') + '\n').join('');
}

function update() {
  const done = records.filter(chosen).length;
  records.forEach(record => record.classList.toggle('done', chosen(record) !== ''));
  document.getElementById('count').textContent = `${done} of ${records.length} labelled`;
  save.setAttribute('aria-disabled', String(done === 0));
  save.href = 'data:text/csv;charset=utf-8,' + encodeURIComponent(table());
}

function keep() {
  try {
    localStorage.setItem(place, JSON.stringify(records.map(chosen)));
  } catch { /* the browser keeps nothing of files: saving still works */ }
}

function bringBack() {
  let kept = null;
  try { kept = JSON.parse(localStorage.getItem(place)); } catch { /* see keep */ }
  if (!Array.isArray(kept)) return;
  records.forEach((record, number) => {
    const input = [...record.querySelectorAll('input')].find(each => each.value === kept[number]);
    if (input) input.checked = true;
  });
}

document.getElementById('labels').addEventListener('change', () => { keep(); update(); });
document.getElementById('labels').addEventListener('submit', event => event.preventDefault());
save.addEventListener('click', event => { if (save.getAttribute('aria-disabled') === 'true') event.preventDefault(); });
document.addEventListener('keydown', event => {
  const record = document.activeElement?.closest('.record');
  const number = Number(event.key);
  if (!record || !(number >= 1) || event.ctrlKey || event.metaKey || event.altKey) return;
  const input = record.querySelectorAll('input')[number - 1];
  if (!input || input.value === '') return;
  event.preventDefault();
  input.checked = true;
  input.dispatchEvent(new Event('change', {bubbles: true}));
  const next = records[records.indexOf(record) + 1];
  if (next) {
    next.querySelector('input:checked').focus({preventScroll: true});
    next.scrollIntoView({block: 'center'});
  }
});
bringBack();
update();

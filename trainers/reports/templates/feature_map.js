(() => {
  const store = document.getElementById('map-data');
  if (!store) return;
  const data = JSON.parse(store.textContent), said = document.getElementById('point');
  const name = (way, i) => i < 0 ? 'unlabelled' : data.names[way === 'domain' ? 'domain' : 'class'][i];
  const maps = [...document.querySelectorAll('.map svg')].map((svg, m) => {
    const uses = [...svg.querySelectorAll('use')];
    const places = uses.map(u => [+u.getAttribute('x'), +u.getAttribute('y')]);
    return {svg, uses, places, predicted: data.maps[m].predicted, sure: data.maps[m].sure};
  });
  const kind = (map, way, i) => (way === 'predicted' ? map.predicted : data[way])[i];
  const paint = way => maps.forEach(map => map.uses.forEach((use, i) => {
    const k = kind(map, way, i);
    use.setAttribute('href', k < 0 ? '#m-none' : '#m' + k);
  }));
  const show = (map, i) => {
    let ring = document.getElementById('ring');
    if (!ring) {
      ring = document.createElementNS('http://www.w3.org/2000/svg', 'circle');
      ring.id = 'ring'; ring.setAttribute('r', 8);
    }
    ring.setAttribute('cx', map.places[i][0]); ring.setAttribute('cy', map.places[i][1]);
    map.svg.append(ring); map.at = i;
    said.textContent = data.id[i] + ' · ' + name('domain', data.domain[i]) + ' · class: ' + name('true', data.true[i]) +
      ' · predicted: ' + name('predicted', map.predicted[i]) + ' (' + map.sure[i] + ' %)';
  };
  maps.forEach(map => {
    const find = event => {
      const box = map.svg.getBoundingClientRect(), scale = map.svg.viewBox.baseVal.width / box.width;
      const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
      let best = -1, least = 14 * 14;
      map.places.forEach(([a, b], i) => {
        const d = (a - x) ** 2 + (b - y) ** 2;
        if (d < least) { least = d; best = i; }
      });
      if (best >= 0) show(map, best);
    };
    map.svg.addEventListener('pointermove', find);
    map.svg.addEventListener('pointerdown', find);
    map.svg.parentElement.addEventListener('keydown', event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      const count = map.places.length;
      show(map, ((map.at ?? (step > 0 ? -1 : 0)) + step + count) % count);
    });
  });
  document.querySelectorAll('input[name=by]').forEach(input => input.addEventListener('change', () => paint(input.value)));
  paint(document.querySelector('input[name=by]:checked').value);
})();

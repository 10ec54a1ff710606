"use strict";
const tip = document.getElementById("tip");

function showTip(content, x, y) {
  tip.replaceChildren(...content);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.left = Math.max(4, Math.min(left, innerWidth - box.width - 4)) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - box.height - 4)) + "px";
}

function row(colour, name, value) {
  const line = document.createElement("div");
  const swatch = document.createElement("i");
  swatch.className = "swatch s" + colour;
  const number = document.createElement("b");
  number.textContent = value;
  line.append(swatch, name, number);
  return line;
}

for (const figure of document.querySelectorAll("figure.chart")) {
  const script = figure.querySelector("script");
  if (!script) continue;
  const chart = JSON.parse(script.textContent);
  const svg = figure.querySelector("svg");
  const guide = figure.querySelector(".guide");
  const places = new Map(chart.series.flatMap((series) => series.points.map((point) => [point[0], point[2]])));
  const xs = [...places.keys()].sort((a, b) => a - b);
  let at = -1;

  const show = (index, clientX, clientY) => {
    at = Math.max(0, Math.min(index, xs.length - 1));
    const x = xs[at];
    guide.setAttribute("x1", x);
    guide.setAttribute("x2", x);
    guide.style.visibility = "visible";
    const title = document.createElement("div");
    title.textContent = chart.x + " " + places.get(x);
    const lines = chart.series.map((series) => {
      const point = series.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
      const away = point[2] === places.get(x) ? "" : " (at " + point[2] + ")";
      return row(series.colour, series.name + away, point[3]);
    });
    showTip([title, ...lines], clientX, clientY);
  };
  const hide = () => {
    guide.style.visibility = "hidden";
    tip.hidden = true;
  };
  const point = (event) => {
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse()).x;
    const nearest = xs.reduce((best, value, index) => (Math.abs(value - x) < Math.abs(xs[best] - x) ? index : best), 0);
    show(nearest, event.clientX, event.clientY);
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    show(at + step, box.left + box.width / 2, box.top + box.height / 3);
  });
}

for (const element of document.querySelectorAll("[data-tip]")) {
  const show = (event) => showTip([element.dataset.tip], event.clientX, event.clientY);
  element.addEventListener("pointermove", show);
  element.addEventListener("pointerdown", show);
  element.addEventListener("pointerleave", () => (tip.hidden = true));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (line) => line.cells[column].dataset.value;
      const body = table.tBodies[0];
      const compare = (a, b) => {
        const [one, other] = [value(a), value(b)];
        if (!one || !other) return (other ? 1 : 0) - (one ? 1 : 0);
        const order = isNaN(one) || isNaN(other) ? one.localeCompare(other) : one - other;
        return down ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});

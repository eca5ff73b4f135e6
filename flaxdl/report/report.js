"use strict";

// Values under the pointer in charts.
const tip = document.getElementById("tip");
const shown = value => value === null ? "–" : value.toLocaleString("en-US", {
  maximumSignificantDigits: 4,
});
const nearest = (xs, x) => xs.reduce(
  (best, value, i) => Math.abs(value - x) < Math.abs(xs[best] - x) ? i : best, 0);

for (const figure of document.querySelectorAll("figure[data-points]")) {
  const chart = JSON.parse(figure.dataset.points);
  const svg = figure.querySelector("svg.chart");
  const series = chart.series.filter(one => one.x.length);
  const cursor = document.createElementNS(svg.namespaceURI, "line");
  cursor.setAttribute("class", "cursor");
  svg.append(cursor);
  const {width, height} = svg.viewBox.baseVal;
  const formatted = value =>
    chart.percent && value !== null ? `${(100 * value).toFixed(2)}%` : shown(value);

  const hide = () => {
    tip.hidden = true;
    cursor.style.display = "none";
  };
  const show = event => {
    const box = svg.getBoundingClientRect();
    const place = (event.clientX - box.left) / box.width;
    if (!series.length || place < chart.left || place > chart.right) return hide();
    const scale = (chart.high - chart.low) / (chart.right - chart.left);
    const pointed = chart.low + (place - chart.left) * scale;
    const x = series.map(one => one.x[nearest(one.x, pointed)])
      .reduce((best, value) => Math.abs(value - pointed) < Math.abs(best - pointed) ? value : best);
    const at = width * (chart.left + (x - chart.low) / scale);
    for (const [name, value] of [["x1", at], ["x2", at], ["y1", 0], ["y2", height]]) {
      cursor.setAttribute(name, value);
    }
    cursor.style.display = "";
    const epoch = chart.stepsPerEpoch ? `, epoch ${shown(x / chart.stepsPerEpoch)}` : "";
    const values = series.map(one => {
      const i = nearest(one.x, x);
      const other = one.x[i] === x ? "" : ` (${chart.unit} ${shown(one.x[i])})`;
      return `${one.name}: ${formatted(one.y[i])}${other}`;
    });
    tip.textContent = [`${chart.unit} ${shown(x)}${epoch}`, ...values].join("\n");
    tip.hidden = false;
    const left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(left, 0)}px`;
    tip.style.top = `${Math.max(event.clientY - tip.offsetHeight - 10, 0)}px`;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
  svg.addEventListener("pointerleave", hide);
  hide();
}

// Tables that are sorted by a click on a column: ascending first, then descending.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...cell.childNodes);
    cell.append(button);
    button.addEventListener("click", () => {
      const order = cell.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", order);
      const value = row => {
        const {dataset, textContent} = row.cells[column];
        if (dataset.value === undefined) return textContent;
        return dataset.value === "" ? null : Number(dataset.value);
      };
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...body.rows].sort((a, b) => {
        const [p, q] = [value(a), value(b)];
        if (p === null || q === null) return (p === null) - (q === null);  // undefined ones last
        return sign * (typeof p === "number" ? p - q : p.localeCompare(q, "en", {numeric: true}));
      });
      body.replaceChildren(...rows);
    });
  });
}

// Images that are enlarged by a click.
const enlarged = document.getElementById("enlarged");
enlarged.addEventListener("click", () => enlarged.close());
for (const image of document.querySelectorAll("img.zoom")) {
  image.tabIndex = 0;
  image.setAttribute("role", "button");
  const open = () => {
    const copy = image.cloneNode();
    copy.removeAttribute("role");
    enlarged.replaceChildren(copy, image.closest("figure").querySelector("figcaption").cloneNode(true));
    enlarged.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();  // a space would scroll
    open();
  });
}

"use strict";
const charts = JSON.parse(document.getElementById("charts").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// Colours are the page's own variables, so that charts follow its scheme, on paper too.
function draw() {
  const text = "var(--text)", dim = "var(--dim)", line = "var(--line)";
  const config = {
    background: "transparent", font: "system-ui, sans-serif",
    axis: { labelColor: text, titleColor: dim, gridColor: line, domainColor: line, tickColor: line, gridOpacity: 0.6 },
    legend: { labelColor: text, titleColor: dim, orient: "top" },
    text: { color: text }, rule: { color: dim }, view: { stroke: null },
  };
  for (const [name, spec] of Object.entries(charts)) {
    const place = document.getElementById("chart-" + name);
    vegaEmbed(place, spec, { mode: "vega-lite", actions: false, renderer: "svg", config, tooltip: { theme: dark.matches ? "dark" : "light" } })
      .then(() => { place.dataset.drawn = "true"; })
      .catch((error) => { place.textContent = "This chart could not be drawn: " + error; console.error(error); });
  }
}

function sortable(table) {
  const body = table.tBodies[0], headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const up = heading.getAttribute("aria-sort") !== "ascending";
    headings.forEach((each) => each.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...body.rows].sort((one, other) => {
      const a = value(one), b = value(other);
      if (a === "" || b === "") return (a === "") - (b === "");
      const order = isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
      return up ? order : -order;
    });
    body.append(...rows);
  }));
}

draw();
dark.addEventListener("change", draw);
document.querySelectorAll("table.sortable").forEach(sortable);

"use strict";
(() => {
  const config = { displayModeBar: false, responsive: true, showTips: false };
  const drawn = new Map();
  const zooms = matchMedia("(pointer: fine)").matches;

  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function dress(layout) {
    const [ink, line, paper] = ["--ink", "--line", "--paper"].map(colour);
    const dressed = structuredClone(layout);
    Object.assign(dressed, {
      autosize: true, paper_bgcolor: "transparent", plot_bgcolor: "transparent", dragmode: zooms ? "zoom" : false,
      font: { family: "system-ui, sans-serif", size: 13, color: ink },
      hoverlabel: { bgcolor: paper, bordercolor: line, font: { color: ink } },
    });
    for (const name of ["xaxis", "yaxis"]) {
      Object.assign(dressed[name], { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true });
      dressed[name].fixedrange = !zooms;
    }
    return dressed;
  }

  function draw(place, chart) {
    drawn.set(place, chart);
    place.style.height = `${chart.layout.height}px`;
    place.setAttribute("aria-label", chart.alt);
    return Plotly.react(place, chart.data, dress(chart.layout), config);
  }

  function redraw() {
    for (const [place, chart] of drawn) {
      if (place.offsetParent) draw(place, chart);
    }
  }

  // A point that opens a page has its key in customdata; a cell of a heat map has "x.y" for one.
  const keyOf = (point) => point.customdata ?? `${point.x}.${point.y}`;

  const open = (key) => {
    location.hash = `${items.prefix}-${key}`;
  };

  // Arrow keys walk over cells or points, Enter opens the page of one.
  function walk(place, live) {
    let row = 0;
    let column = 0;
    place.addEventListener("keydown", (event) => {
      const trace = drawn.get(place).data[0];
      const grid = trace.type === "heatmap";
      const order = grid ? trace.x : trace.x.map((x, at) => at).sort((a, b) => trace.x[a] - trace.x[b]);
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] }[event.key];
      if (step) {
        row = grid ? Math.min(Math.max(row + step[0], 0), trace.y.length - 1) : 0;
        column = Math.min(Math.max(column + step[1], 0), order.length - 1);
      } else if (event.key !== "Enter") return;
      event.preventDefault();
      const at = grid ? [row, column] : order[column];
      const key = grid ? `${trace.x[column]}.${trace.y[row]}` : trace.customdata[at];
      if (event.key === "Enter") {
        open(key);
        return;
      }
      Plotly.Fx.hover(place, [{ curveNumber: 0, pointNumber: at }]);
      live.textContent = `${items.word} ${key}: ${grid ? trace.text[row][column] : trace.text[at]}`;
    });
    place.addEventListener("blur", () => Plotly.Fx.unhover(place));
  }

  function begin(figure) {
    const charts = JSON.parse(figure.querySelector("script").textContent);
    const place = figure.querySelector(".canvas");
    const choice = figure.querySelector("select");
    draw(place, charts[0]);
    choice?.addEventListener("change", () => draw(place, charts[choice.selectedIndex]));
    if (!figure.hasAttribute("data-opens")) return;
    walk(place, figure.querySelector(".live"));
    place.on("plotly_click", (event) => {
      if (event.points[0].curveNumber === 0) open(keyOf(event.points[0]));
    });
  }

  function sortable(table) {
    const body = table.tBodies[0];
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const value = (row) => row.cells[column].dataset.value;
        const rows = [...body.rows].sort((a, b) => {
          const [left, right] = [value(a), value(b)];
          if (left === "" || right === "") return (left === "") - (right === "");
          return (up ? 1 : -1) * (left - right);
        });
        body.append(...rows);
      });
    });
  }

  const dialog = document.querySelector("dialog");
  const items = dialog ? JSON.parse(document.getElementById("items").textContent) : null;

  function shown() {
    const found = location.hash.slice(1);
    return items && found.startsWith(`${items.prefix}-`) ? found.slice(items.prefix.length + 1) : null;
  }

  function show() {
    const key = shown();
    if (key === null || !Object.hasOwn(items.cells, key)) {
      if (dialog?.open) dialog.close();
      return;
    }
    dialog.querySelector("h2").textContent = `${items.word} ${key}`;
    dialog.querySelector("dl").replaceChildren(
      ...items.names.map((name, at) => {
        const line = document.createElement("div");
        const [term, value] = [document.createElement("dt"), document.createElement("dd")];
        term.textContent = name;
        value.textContent = items.cells[key][at] || "\u2013";
        line.append(term, value);
        return line;
      }),
    );
    if (!dialog.open) dialog.showModal();
    const chart = structuredClone(items.chart);
    chart.alt = chart.alt.replace("KEY", key);
    items.curves[key].forEach((y, at) => { chart.data[at].y = y; });
    draw(dialog.querySelector(".canvas"), chart);
  }

  function neighbour(step) {
    const count = items.order.length;
    open(items.order[(items.order.indexOf(shown()) + step + count) % count]);
  }

  document.querySelectorAll("figure.plot").forEach(begin);
  document.querySelectorAll("table.sortable").forEach(sortable);
  const theme = document.getElementById("theme");
  theme.addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  if (dialog) {
    dialog.addEventListener("close", () => {
      if (shown() !== null) history.replaceState(null, "", location.pathname + location.search);
    });
    dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
    dialog.querySelectorAll("[data-step]").forEach((button) => {
      button.addEventListener("click", () => neighbour(Number(button.dataset.step)));
    });
    addEventListener("hashchange", show);
    show();
  }
})();

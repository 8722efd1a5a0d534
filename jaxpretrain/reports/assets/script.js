"use strict";
// Draws the figures when they come into view, in the colours of the theme, and keeps the steps that
// are shown the same in all of them.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  // Okabe and Ito's colours, which colour-blind readers can tell apart; lighter ones on dark.
  const colors = {
    light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a5195", "#666666"],
    dark: ["#56b4e9", "#ff9a4d", "#4fd0a5", "#e3a0c6", "#e6c229", "#9ad0f5", "#b99be0", "#aaaaaa"],
  };
  // From low to high values of the one field in which the runs differ.
  const scales = {
    light: [[68, 1, 84], [49, 104, 142], [31, 158, 137], [217, 148, 0]],
    dark: [[150, 120, 255], [80, 170, 230], [90, 215, 140], [253, 231, 37]],
  };
  const shades = {
    light: ["rgba(230,159,0,.13)", "rgba(0,114,178,.07)", "rgba(0,158,115,.07)", "rgba(204,121,167,.12)"],
    dark: ["rgba(230,159,0,.16)", "rgba(86,180,233,.09)", "rgba(79,208,165,.09)", "rgba(227,160,198,.13)"],
  };
  const drawn = new Set();
  let linking = false;

  const mode = () => (dark.matches ? "dark" : "light");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // A color is a place in the palette or {at: x} on the scale.
  function hue(color) {
    if (typeof color !== "object") return colors[mode()][(color ?? 0) % colors[mode()].length];
    const scale = scales[mode()], place = color.at * (scale.length - 1);
    const from = Math.min(Math.floor(place), scale.length - 2), part = place - from;
    return `rgb(${scale[from].map((c, i) => Math.round(c + part * (scale[from + 1][i] - c)))})`;
  }

  // Numbers on a logarithmic axis are written in full, and few.
  const formats = (own, log) => ({ tickformat: log ? "~g" : own?.tickformat ?? "", nticks: log ? 3 : 0 });

  function themed(figure, width) {
    const axis = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true };
    const traces = figure.traces.map(({ color, width, dash, band, ...trace }) => {
      if (trace.type === "heatmap") return trace;
      const own = hue(color);
      if (trace.type === "bar") return { ...trace, marker: { color: own } };
      if (band) return { ...trace, line: { width: 0 }, fillcolor: own, opacity: 0.18 };
      return { ...trace, line: { color: own, width: width ?? 1.5, dash }, marker: { color: own, size: 5 } };
    });
    const labels = figure.traces.filter((trace) => trace.showlegend !== false).length;
    const height = figure.layout.height ?? 300;
    const steps = new Set(figure.traces.flatMap((trace) => trace.x));
    const ticks = steps.size === 1 ? { tickvals: [...steps] } : {};
    const own = figure.layout;
    const layout = {
      hovermode: "x unified", dragmode: width < 600 ? false : "zoom",
      margin: { l: 56, r: 14, t: 30, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--text"), size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { namelength: -1, bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") } },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--text") },
      showlegend: labels > 1,
      ...own,
      legend: { orientation: "h", y: 0, yref: "container", yanchor: "bottom", ...(own.legend ?? {}) },
      // Each label has a row of its own on a phone.
      height: height + (labels > 2 && width < 600 ? 19 * (labels - 2) : 0),
      xaxis: { ...axis, title: { text: "step", standoff: 6, font: { size: 11 } }, ...ticks, ...(own.xaxis ?? {}) },
      yaxis: { ...axis, ...(own.yaxis ?? {}), ...formats(own.yaxis, own.yaxis?.type === "log") },
      shapes: (own.shapes ?? []).map(({ shade, ...shape }) =>
        shade === undefined ? shape : { ...shape, fillcolor: shades[mode()][shade] }),
    };
    if (own.yaxis2) layout.yaxis2 = { ...axis, ...own.yaxis2 };
    return [traces, layout];
  }

  function draw(id) {
    const div = document.getElementById("plot-" + id);
    const [traces, layout] = themed(figures[id], div.clientWidth);
    const first = !drawn.has(id);
    drawn.add(id);
    if (!first) {
      for (const axis of ["xaxis", "yaxis"]) {
        const { type, range, autorange } = div.layout[axis];
        Object.assign(layout[axis], { type, range: [...range], autorange }, formats(figures[id].layout[axis], type === "log"));
      }
    }
    Plotly.react(div, traces, layout, { responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] });
    if (first && figures[id].linked) {
      div.on("plotly_relayout", (change) => {
        const range = [change["xaxis.range[0]"], change["xaxis.range[1]"]];
        if (range[0] !== undefined) show(range, id);
        else if (change["xaxis.autorange"]) show(null, id);
      });
    }
  }

  // Steps are shared by all figures; a figure on a logarithmic axis keeps its own range.
  function show(range, from) {
    if (linking) return;
    linking = true;
    const others = [...drawn].filter((id) => id !== from && figures[id].linked);
    Promise.all(others.map((id) => {
      const div = document.getElementById("plot-" + id);
      if (div.layout.xaxis.type === "log") return null;
      return Plotly.relayout(div, range ? { "xaxis.range": range } : { "xaxis.autorange": true });
    })).finally(() => { linking = false; });
  }

  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      const id = entry.target.id.slice("plot-".length);
      if (!drawn.has(id)) draw(id);
    }
  }, { rootMargin: "300px" });
  for (const id of Object.keys(figures)) observer.observe(document.getElementById("plot-" + id));

  function paint() {
    for (const dot of document.querySelectorAll(".dot")) dot.style.background = hue(JSON.parse(dot.dataset.color));
  }

  paint();
  dark.addEventListener("change", () => { paint(); [...drawn].forEach(draw); });

  // Sorts the rows of a table by a column; empty cells come last.
  function sort(th) {
    const table = th.closest("table");
    const sign = th.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const value = (row) => row.cells[th.cellIndex].dataset.value ?? row.cells[th.cellIndex].textContent;
    const compare = (a, b) => (a === "") - (b === "") || sign * (a - b || a.localeCompare(b, undefined, { numeric: true }));
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b))));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-axis]");
    if (button) {
      const div = document.getElementById("plot-" + button.dataset.plot);
      const log = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(log));
      const axis = button.dataset.axis;
      const own = formats(figures[button.dataset.plot].layout[axis], log);
      Plotly.relayout(div, { [axis + ".type"]: log ? "log" : "linear", [axis + ".autorange"]: true,
        [axis + ".tickformat"]: own.tickformat, [axis + ".nticks"]: own.nticks });
    }
    const head = event.target.closest(".sortable thead button");
    if (head) sort(head.closest("th"));
    const place = event.target.closest('a[href^="#"]');
    if (place) {
      const target = document.getElementById(place.getAttribute("href").slice(1));
      const closed = target.closest("details");
      if (closed) closed.open = true;
    }
    const link = event.target.closest("a[data-plot]");
    if (link) {
      const id = link.dataset.plot;
      const div = document.getElementById("plot-" + id);
      if (!drawn.has(id)) draw(id);
      const [first, last] = [Number(link.dataset.first), Number(link.dataset.last)];
      const margin = Math.max(20, 0.5 * (last - first));
      Plotly.relayout(div, { "xaxis.type": "linear", "xaxis.range": [Math.max(0, first - margin), last + margin] });
    }
  });
  document.documentElement.dataset.ready = "true";
})();

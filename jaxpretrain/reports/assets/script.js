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
  const shades = {
    light: ["rgba(230,159,0,.13)", "rgba(0,114,178,.07)", "rgba(0,158,115,.07)", "rgba(204,121,167,.12)"],
    dark: ["rgba(230,159,0,.16)", "rgba(86,180,233,.09)", "rgba(79,208,165,.09)", "rgba(227,160,198,.13)"],
  };
  const drawn = new Set();
  let linking = false;

  const mode = () => (dark.matches ? "dark" : "light");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function themed(figure) {
    const axis = { gridcolor: css("--line"), zeroline: false, linecolor: css("--line"), automargin: true };
    const palette = colors[mode()];
    const traces = figure.traces.map(({ color, width, ...trace }) => {
      if (trace.type === "heatmap") return trace;
      const hue = palette[(color ?? 0) % palette.length];
      return trace.type === "bar"
        ? { ...trace, marker: { color: hue } }
        : { ...trace, line: { color: hue, width: width ?? 1.5 }, marker: { color: hue, size: 5 } };
    });
    const own = figure.layout;
    const layout = {
      height: 300, hovermode: "x unified", dragmode: "zoom",
      margin: { l: 56, r: 14, t: 26, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: css("--text"), size: 12, family: "system-ui, sans-serif" },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text") } },
      showlegend: figure.traces.filter((t) => t.showlegend !== false).length > 1,
      legend: { orientation: "h", y: -0.16, yanchor: "top" },
      ...own,
      xaxis: { ...axis, ...(own.xaxis ?? {}) },
      yaxis: { ...axis, ...(own.yaxis ?? {}) },
      shapes: (own.shapes ?? []).map(({ shade, ...shape }) =>
        shade === undefined ? shape : { ...shape, fillcolor: shades[mode()][shade] }),
    };
    if (own.yaxis2) layout.yaxis2 = { ...axis, ...own.yaxis2 };
    if (own.yaxis2) layout.legend.y = -0.1;
    return [traces, layout];
  }

  function draw(id) {
    const div = document.getElementById("plot-" + id);
    const [traces, layout] = themed(figures[id]);
    const first = !drawn.has(id);
    drawn.add(id);
    if (!first) {
      for (const axis of ["xaxis", "yaxis"]) {
        const { type, range, autorange } = div.layout[axis];
        Object.assign(layout[axis], { type, range: [...range], autorange });
      }
    }
    Plotly.react(div, traces, layout, { responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
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

  dark.addEventListener("change", () => [...drawn].forEach(draw));

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-axis]");
    if (button) {
      const div = document.getElementById("plot-" + button.dataset.plot);
      const log = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(log));
      const axis = button.dataset.axis;
      Plotly.relayout(div, { [axis + ".type"]: log ? "log" : "linear", [axis + ".autorange"]: true });
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

// The explorer: a workload, three sliders over its grid, a table of the configurations, bars, and the
// map at the chosen load. Every figure is read from the page's own data; nothing is computed but the costs.
document.addEventListener("DOMContentLoaded", () => {
  const root = document.getElementById("kvab-explorer");
  const workloads = JSON.parse(document.getElementById("kvab-bounds").textContent);
  const workload = root.querySelector("select");
  let data, grid, arms;
  const keys = ["load", "ttft_ms", "itl_ms"];
  const slider = Object.fromEntries(keys.map((key) => [key, root.querySelector(`input[name=${key}]`)]));
  const style = getComputedStyle(document.documentElement);
  const ink = () => style.getPropertyValue("--pst-color-text-base").trim() || "#000";
  const font = () => ({ color: ink(), family: style.getPropertyValue("--pst-font-family-base"), size: 13 });
  const colour = (arm) => style.getPropertyValue(`--kvab-${arm.name}`).trim() || arm.color;
  const layout = {
    margin: { l: 10, r: 10, t: 10, b: 45 }, height: 260,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
  };
  const lines = { gridcolor: "rgba(128,128,128,0.35)", zeroline: false }, none = { showgrid: false, ticks: "" };
  let frame = 0;
  const settings = { displayModeBar: false, responsive: true };

  const number = (value, digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2) => {
    return value.toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits });
  };
  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(1);
  const tenths = (value) => (value === null ? null : value / 10);
  const ends = (row) => (row.low === null ? "–" : `${row.low.toFixed(1)} to ${row.high.toFixed(1)}`);
  const cell = (at) => (at.load * grid.ttft_ms.length + at.ttft_ms) * grid.itl_ms.length + at.itl_ms;

  function options(at) {
    const found = arms.map((arm, n) => {
      const k = cell(at) * arms.length + n, hours = data.hours[at.load * arms.length + n];
      const good = data.good[k], tokens = data.tokens[k];
      return {
        ...arm, n, color: colour(arm), share: (100 * good) / data.requests, low: tenths(data.low[k]), high: tenths(data.high[k]),
        hours: good ? number(hours / (good / 1000)) : "–",
        dollars: data.price && tokens ? number((data.price * hours) / (tokens / 1e6), 2) : "–",
      };
    });
    return found.sort((a, b) => b.share - a.share);
  }

  function advice(at) {
    const [best, next, margin, low, high] = data.leads[cell(at)];
    if (!options(at)[0].share) return "No configuration keeps any request good.";
    const ahead = `${margin.toFixed(1)} points ahead of ${arms[next].label} ` +
      (low === null ? "(no interval: too few blocks)"
        : `(${data.level} workload interval ${signed(low)} to ${signed(high)})`);
    return low > 0 ? `${arms[best].label}: ${ahead}.`
      : `No clear one: ${arms[best].label} is ${ahead}, which is within noise.`;
  }

  function bars(shown) {
    const rows = [...shown].reverse();
    Plotly.react(root.querySelector(".kvab-bars"), [{
      type: "bar", orientation: "h", y: rows.map((row) => row.label), x: rows.map((row) => row.share),
      marker: { color: rows.map((row) => row.color) }, hoverinfo: "skip",
      error_x: { type: "data", symmetric: false, color: ink(),
        array: rows.map((row) => row.high - row.share), arrayminus: rows.map((row) => row.share - row.low) },
    }], { ...layout, font: font(), xaxis: { ...lines, range: [0, 102], title: { text: "good requests [%]" } }, yaxis: { automargin: true } }, settings);
  }

  function map(at) {
    const z = grid.itl_ms.map((_, i) => grid.ttft_ms.map((_, t) => {
      const [best, , margin] = data.leads[cell({ ...at, ttft_ms: t, itl_ms: i })];
      return margin > 0 ? best : null;
    }));
    const scale = arms.flatMap((arm, n) => [[n / arms.length, colour(arm)], [(n + 1) / arms.length, colour(arm)]]);
    Plotly.react(root.querySelector(".kvab-map"), [
      { type: "heatmap", z, x: grid.ttft_ms.map(String), y: grid.itl_ms.map(String), showscale: false,
        zmin: -0.5, zmax: arms.length - 0.5, colorscale: scale, xgap: 1, ygap: 1, hoverinfo: "skip" },
      { type: "scatter", mode: "markers", x: [String(grid.ttft_ms[at.ttft_ms])], y: [String(grid.itl_ms[at.itl_ms])],
        marker: { size: 13, color: "#fff", line: { color: "#000", width: 3 } }, hoverinfo: "skip", showlegend: false },
    ], { ...layout, height: 340, font: font(), xaxis: { ...none, type: "category", title: { text: "TTFT within [ms]" }, tickangle: -45, automargin: true },
      yaxis: { ...none, type: "category", title: { text: "ITL within [ms]" }, automargin: true } }, settings);
  }

  function show() {
    const at = Object.fromEntries(keys.map((key) => [key, Number(slider[key].value)]));
    for (const key of keys) {
      const value = grid[key][at[key]], unit = key === "load" ? " times the trace's" : " ms";
      root.querySelector(`output[name=${key}]`).textContent = value.toLocaleString("en-US") + unit;
      slider[key].setAttribute("aria-valuetext", value.toLocaleString("en-US") + unit);
    }
    const shown = options(at);
    root.querySelector("tbody").innerHTML = shown.map((row) =>
      `<tr><th scope="row"><span class="kvab-key" style="background: ${row.color}"></span>${row.label}</th>` +
      `<td>${row.share.toFixed(1)} %</td><td>${ends(row)}</td>` +
      `<td>${row.hours}</td><td>${row.dollars}</td></tr>`).join("");
    root.querySelector("[aria-live]").textContent = advice(at);
    cancelAnimationFrame(frame); // figures follow once a frame, however fast a slider moves
    frame = requestAnimationFrame(() => { if (window.Plotly) { bars(shown); map(at); } });
  }

  function choose() {
    data = workloads[workload.selectedIndex];
    ({ grid, arms } = data);
    for (const key of keys) {
      slider[key].max = grid[key].length - 1;
      slider[key].value = data.start[key];
    }
    show();
  }

  for (const key of keys) slider[key].addEventListener("input", show);
  new MutationObserver(show).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  workload.addEventListener("change", choose);
  root.hidden = false;
  choose();
});

// Draws the figures, whose data stand in the page as JSON.
Object.assign(uq, {
  // chemiscope has a plotly of its own, and takes its style out of the page by this name.
  keepStyle() {
    const style = document.getElementById("plotly.js-style-global");
    if (style) { style.id = "uq-plotly-style"; }
  },
  // The figures come in the colours of the light page.
  coloured(figure) {
    const style = getComputedStyle(document.documentElement);
    const ink = style.getPropertyValue("--ink").trim();
    const suspect = style.getPropertyValue("--suspect").trim();
    const quiet = style.getPropertyValue("--quiet").trim();
    const text = JSON.stringify(figure)
      .replaceAll('"#222222"', JSON.stringify(ink))
      .replaceAll('"#8a6414"', JSON.stringify(suspect))
      .replaceAll('"#8a8a8a"', JSON.stringify(quiet));
    return JSON.parse(text);
  },
  plot(element, figure) {
    const { data, layout } = uq.coloured(figure);
    if (element.clientWidth < 560) {
      layout.margin = { ...layout.margin, l: 62, r: 6 };
      layout.font = { ...layout.font, size: 11 };
    }
    return Plotly.react(element, data, layout, { responsive: true, displayModeBar: false });
  },
  drawAll() {
    for (const element of document.querySelectorAll(".plot[data-figure]")) {
      uq.plot(element, uq.data(element.dataset.figure));
    }
  },
});

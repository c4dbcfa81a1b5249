"use strict";
// Values under the pointer. The page says everything without it.
(() => {
  const hint = document.createElement("div");
  hint.id = "hint";
  hint.hidden = true;
  document.body.append(hint);
  const short = (v) => (v !== 0 && (Math.abs(v) < 1e-3 || Math.abs(v) >= 1e5) ? v.toExponential(2) : String(Number(v.toPrecision(4))));
  for (const svg of document.querySelectorAll("svg.chart[data-x]")) {
    const [x0, x1, left, right, scale] = svg.dataset.x.split(" ").map((v, i) => (i < 4 ? Number(v) : v));
    const [y0, y1, bottom, top] = svg.dataset.y.split(" ").map(Number);
    const log = scale === "log";
    const value = (px) => {
      const t = (px - left) / (right - left);
      return log ? x0 * Math.pow(x1 / x0, t) : x0 + t * (x1 - x0);
    };
    const lines = [...svg.querySelectorAll("path.line")].map((path) => ({
      name: path.dataset.label,
      role: path.classList[1],
      points: (path.getAttribute("d").match(/[-\d.]+ [-\d.]+/g) || []).map((p) => p.split(" ").map(Number)),
    }));
    const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
    hair.setAttribute("class", "hair");
    hair.setAttribute("y1", top);
    hair.setAttribute("y2", bottom);
    hair.style.display = "none";
    svg.append(hair);
    const leave = () => {
      hint.hidden = true;
      hair.style.display = "none";
    };
    svg.addEventListener("pointerleave", leave);
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const px = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      if (px < left - 4 || px > right + 4) return leave();
      const found = lines.map((line) => ({ ...line, at: line.points.reduce((a, b) => (Math.abs(b[0] - px) < Math.abs(a[0] - px) ? b : a)) }));
      const x = found.reduce((a, b) => (Math.abs(b.at[0] - px) < Math.abs(a.at[0] - px) ? b : a)).at[0];
      hair.setAttribute("x1", x);
      hair.setAttribute("x2", x);
      hair.style.display = "";
      hint.replaceChildren(`${short(Math.round(value(x) * 100) / 100)} ${svg.dataset.unit}`);
      for (const line of found) {
        const row = document.createElement("div");
        const number = document.createElement("b");
        row.className = line.role;
        number.textContent = short(y0 + ((line.at[1] - bottom) / (top - bottom)) * (y1 - y0));
        row.append(`${line.name} `, number);
        hint.append(row);
      }
      hint.hidden = false;
      const room = document.documentElement.clientWidth - hint.offsetWidth - 12;
      hint.style.left = `${Math.max(8, Math.min(event.pageX + 16, room))}px`;
      hint.style.top = `${event.pageY + 16}px`;
    });
  }
})();

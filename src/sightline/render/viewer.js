// The viewer of the app, the report and the notebook: no library, no request, no trip to a server.
// sightlineViewer(element, data) draws data.panes on data.photo, with its controls; called again, what the person chose stays.
// sightlineDraw(canvas, image, pane, data, chosen) draws one map once, without controls: pages of many pictures are made of these.
(() => {
  "use strict";
  const STYLES = [
    ["heat", "heat"],
    ["grey-photo", "heat on grey"],
    ["contours", "contours"],
    ["spotlight", "spotlight"],
    ["flat", "even tint"],
    ["photo", "photograph only"],
  ];
  const LEVELS = [0.25, 0.5, 0.75];

  function bytes(text) {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  }

  function make(kind, attributes, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // Three figures that matter, without an exponent where a person would not write one.
  function figure(value) {
    if (value === 0) return "0";
    return Math.abs(value) < 1e-4 || Math.abs(value) >= 1e5 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  }

  // Where the centres of the photograph's pixels lie on the map's cells, along one axis (`View.place`).
  function along(pixels, resized, offset, input, cells) {
    const low = new Int32Array(pixels), part = new Float32Array(pixels), seen = new Uint8Array(pixels);
    let any = false, nearest = 0, distance = Infinity;
    for (let i = 0; i < pixels; i++) {
      const at = ((i + 0.5) * resized) / pixels - offset;
      seen[i] = at >= 0 && at < input ? 1 : 0;
      any = any || seen[i] === 1;
      if (Math.abs(at - input / 2) < distance) [nearest, distance] = [i, Math.abs(at - input / 2)];
      const position = Math.min(Math.max((at * cells) / input - 0.5, 0), cells - 1);
      low[i] = Math.floor(position);
      part[i] = position - low[i];
    }
    if (!any) seen[nearest] = 1;
    return { low, part, seen };
  }

  // The map's values: floats, or half floats that are to be multiplied by pane.half.
  function numbers(pane) {
    const found = bytes(pane.values).buffer;
    if (!pane.half) return new Float32Array(found);
    return Float32Array.from(new Uint16Array(found), (bits) => {
      const power = (bits >> 10) & 31, part = bits & 1023;
      const size = power ? (1 + part / 1024) * 2 ** (power - 15) : part * 2 ** -24;
      return (bits >> 15 ? -size : size) * pane.half;
    });
  }

  function place(pane, data) {
    const [h, w] = pane.grid, view = pane.view, { width, height } = data;
    const grid = numbers(pane);
    const columns = along(width, view.resized[0], view.offset[0], view.input[0], w);
    const rows = along(height, view.resized[1], view.offset[1], view.input[1], h);
    const values = new Float32Array(width * height);
    for (let y = 0; y < height; y++) {
      const top = rows.low[y] * w, bottom = Math.min(rows.low[y] + 1, h - 1) * w, down = rows.part[y];
      for (let x = 0; x < width; x++) {
        const left = columns.low[x], right = Math.min(left + 1, w - 1), over = columns.part[x];
        const above = grid[top + left] * (1 - over) + grid[top + right] * over;
        const below = grid[bottom + left] * (1 - over) + grid[bottom + right] * over;
        values[y * width + x] = rows.seen[y] && columns.seen[x] ? above * (1 - down) + below * down : NaN;
      }
    }
    return values;
  }

  // What stands for a photograph that there is none of.
  function blank() {
    const canvas = make("canvas", { width: 1, height: 1 }), pen = canvas.getContext("2d");
    pen.fillStyle = "#808080";
    pen.fillRect(0, 0, 1, 1);
    return canvas;
  }

  // The photograph in the forms that the styles need, made once.
  function prepare(image, width, height, hatching) {
    const canvas = make("canvas");
    canvas.width = width;
    canvas.height = height;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    image = image || blank();
    pen.drawImage(image, 0, 0, width, height);
    const photo = pen.getImageData(0, 0, width, height).data;
    const grey = new Uint8ClampedArray(photo), pale = new Uint8ClampedArray(photo);
    const period = hatching || Math.max(6, Math.floor(Math.min(height, width) / 28)), thick = Math.max(1, Math.floor(period / 9));
    for (let i = 0; i < width * height; i++) {
      const light = Math.floor((photo[4 * i] * 19595 + photo[4 * i + 1] * 38470 + photo[4 * i + 2] * 7471 + 32768) / 65536);
      const diagonal = ((i % width) + Math.floor(i / width)) % period;
      const ink = diagonal < thick ? 90 : diagonal < 2 * thick ? 250 : light * 0.4 + 225 * 0.6;
      for (let c = 0; c < 3; c++) {
        grey[4 * i + c] = light;
        pale[4 * i + c] = ink;
      }
    }
    // Dark and out of focus: drawn small, then large again.
    const small = make("canvas");
    const shrink = Math.min(1, 40 / Math.max(width, height));
    small.width = Math.max(1, Math.round(width * shrink));
    small.height = Math.max(1, Math.round(height * shrink));
    small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
    pen.drawImage(small, 0, 0, width, height);
    const dim = pen.getImageData(0, 0, width, height).data;
    for (let i = 0; i < dim.length; i++) if (i % 4 !== 3) dim[i] *= 0.22;
    return { photo, grey, pale, dim };
  }

  function contours(out, values, scale, width, height, signed, palette) {
    const count = width * height, bins = new Int8Array(count), marks = new Uint8Array(count);
    const [first, second, third] = LEVELS.map((level) => level * scale);
    for (let i = 0; i < count; i++) {
      const value = values[i], size = value < 0 ? -value : value;
      if (!(size >= first) || (value < 0 && !signed)) continue;
      const bin = size >= third ? 3 : size >= second ? 2 : 1;
      bins[i] = value < 0 ? -bin : bin;
    }
    const mark = (i, j) => {
      if (values[i] !== values[i] || values[j] !== values[j]) return;
      const bin = Math.abs(bins[i]) > Math.abs(bins[j]) ? bins[i] : bins[j];
      const corner = (i % width) + 1 < width && i + width < count ? i + width + 1 : i;
      marks[i] = marks[j] = marks[corner] = 128 + bin;
    };
    for (let y = 0, i = 0; y < height; y++)
      for (let x = 0; x < width; x++, i++) {
        if (x + 1 < width && bins[i] !== bins[i + 1]) mark(i, i + 1);
        if (y + 1 < height && bins[i] !== bins[i + width]) mark(i, i + width);
      }
    for (let i = 0; i < count; i++) {
      if (!marks[i]) continue;
      const bin = marks[i] - 128, level = Math.sign(bin) * LEVELS[Math.abs(bin) - 1];
      const entry = 3 * (signed ? Math.round(127.5 + 127.5 * level) : Math.round(255 * level));
      const rim = palette[entry] + palette[entry + 1] + palette[entry + 2] < 300 ? 255 : 0;
      for (const j of [i - width, i - 1, i + 1, i + width])
        if (j >= 0 && j < count && !marks[j]) out[4 * j] = out[4 * j + 1] = out[4 * j + 2] = rim;
      for (let c = 0; c < 3; c++) out[4 * i + c] = palette[entry + c];
    }
  }

  function draw(pane, forms, data, chosen) {
    const { width, height } = data, values = pane.placed, scale = pane.shownScale;
    const palette = pane.signed ? pane.diverging : chosen.palette;
    const picture = pane.pen.createImageData(width, height), out = picture.data;
    const base = chosen.style === "grey-photo" ? forms.grey : forms.photo;
    const most = chosen.strength / 100, least = chosen.threshold / 100;
    const plain = chosen.style === "photo" || chosen.style === "contours";
    for (let i = 0, at = 0; i < values.length; i++, at += 4) {
      out[at + 3] = 255;
      const value = values[i];
      if (value !== value) {
        out[at] = forms.pale[at];
        out[at + 1] = forms.pale[at + 1];
        out[at + 2] = forms.pale[at + 2];
        continue;
      }
      let share = scale > 0 ? value / scale : 0;
      share = share > 1 ? 1 : share < -1 ? -1 : share;
      const size = share < 0 ? -share : share;
      let alpha = plain || size < least ? 0 : chosen.style === "flat" ? most * 0.55 : chosen.style === "map" ? 1 : size * most;
      let entry = 3 * (pane.signed ? Math.round(127.5 + 127.5 * share) : Math.round(255 * (share < 0 ? 0 : share)));
      let under = base, over = palette;
      if (chosen.style === "spotlight") {
        alpha = (1 - Math.min(1, size < least ? 0 : size * 1.5)) * Math.min(1, most / 0.9);
        over = forms.dim;
        entry = at;
      }
      out[at] = under[at] + (over[entry] - under[at]) * alpha;
      out[at + 1] = under[at + 1] + (over[entry + 1] - under[at + 1]) * alpha;
      out[at + 2] = under[at + 2] + (over[entry + 2] - under[at + 2]) * alpha;
    }
    if (chosen.style === "contours" && scale > 0) contours(out, values, scale, width, height, pane.signed, palette);
    pane.pen.putImageData(picture, 0, 0);
  }

  function drawKey(pane, palette) {
    const pen = pane.key.getContext("2d"), picture = pen.createImageData(256, 1);
    for (let i = 0; i < 256; i++) {
      for (let c = 0; c < 3; c++) picture.data[4 * i + c] = palette[3 * i + c];
      picture.data[4 * i + 3] = 255;
    }
    pen.putImageData(picture, 0, 0);
    pane.low.textContent = pane.signed ? figure(-pane.shownScale) : "0";
    pane.high.textContent = figure(pane.shownScale);
  }

  // What a target is about, over the picture: a light line inside a dark one, in shares of the photograph.
  function markOf(mark) {
    const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg");
    svg.setAttribute("class", "sightline-mark");
    svg.setAttribute("viewBox", "0 0 1 1");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    const paths = (mark.lines || []).map((line) => "M" + line.map(([x, y]) => `${x} ${y}`).join("L"));
    if (mark.box) {
      const [left, top, right, bottom] = mark.box.map((one) => Math.min(Math.max(one, 0), 1));
      paths.push(`M${left} ${top}H${right}V${bottom}H${left}Z`);
    }
    if (mark.point) {
      const [x, y] = mark.point;
      paths.push(`M${x - 0.03} ${y}H${x + 0.03}M${x} ${y - 0.03}V${y + 0.03}`);
    }
    for (const ink of ["dark", "light"]) {
      const path = document.createElementNS(space, "path");
      path.setAttribute("d", paths.join(""));
      path.setAttribute("class", `sightline-${ink}`);
      svg.append(path);
    }
    return svg;
  }

  // Tells whoever holds the viewer what a person chose in it.
  function choose(from, value) {
    from.dispatchEvent(new CustomEvent("sightline-choose", { bubbles: true, detail: value }));
  }

  // The boxes that a model found, to be clicked: the small ones lie on top of the large ones.
  function boxesOf(boxes) {
    const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    return [...boxes].sort((one, other) => area(other) - area(one)).map((one) => {
      const [left, top, right, bottom] = one.box.map((edge) => Math.min(Math.max(edge, 0), 1));
      const button = make("button", { type: "button", class: "sightline-box", "aria-label": `explain ${one.text}`, title: one.text }, make("span", {}, one.number));
      button.style.left = `${100 * left}%`;
      button.style.top = `${100 * top}%`;
      button.style.width = `${100 * (right - left)}%`;
      button.style.height = `${100 * (bottom - top)}%`;
      button.addEventListener("click", () => choose(button, one.value));
      return button;
    });
  }

  // The words of an answer, to be clicked; those that are explained are marked.
  function wordsOf(words) {
    const list = words.map((one) => {
      const button = make("button", { type: "button", "aria-pressed": String(Boolean(one.chosen)), title: one.note }, one.text);
      button.addEventListener("click", () => choose(button, one.value));
      return button;
    });
    return make("p", { class: "sightline-words", "aria-label": "The model's answer: click a word to explain it" }, ...list);
  }

  function select(label, options, value) {
    const list = make("select", {}, ...options.map(([name, text]) => make("option", { value: name }, text)));
    list.value = value;
    return [make("label", {}, label + " ", list), list];
  }

  function slider(label, value) {
    const range = make("input", { type: "range", min: 0, max: 100, value });
    return [make("label", {}, label + " ", range), range];
  }

  // chosen: style ("map" for the colours alone), colours, the scale where it is not the pane's own, pixels from one hatching line to the next.
  // Without an image the ground is grey.
  window.sightlineDraw = (canvas, image, pane, data, chosen) => {
    canvas.width = data.width;
    canvas.height = data.height;
    const drawn = {
      ...pane, pen: canvas.getContext("2d"), placed: place(pane, data),
      shownScale: chosen.scale === undefined ? pane.scale : chosen.scale, diverging: bytes(data.palettes[data.diverging]),
    };
    const settings = { strength: 90, threshold: 0, ...chosen, palette: bytes(data.palettes[chosen.colours || "inferno"]) };
    draw(drawn, prepare(image, data.width, data.height, chosen.period), data, settings);
  };
  window.sightlineDraw.styles = STYLES;

  window.sightlineViewer = (element, data) => {
    const chosen = element.sightlineChoice || { style: data.style || "heat", colours: "inferno", strength: 90, threshold: 0, same: true };
    element.sightlineChoice = chosen;
    const palettes = Object.fromEntries(Object.entries(data.palettes).map(([name, text]) => [name, bytes(text)]));
    const [styleLabel, style] = select("Style", STYLES, chosen.style);
    const [colourLabel, colours] = select("Colours", Object.keys(palettes).filter((name) => name !== data.diverging).map((name) => [name, name]), chosen.colours);
    const [strengthLabel, strength] = slider("Strength", chosen.strength);
    const [thresholdLabel, threshold] = slider("Hide below", chosen.threshold);
    const same = make("input", { type: "checkbox" });
    same.checked = chosen.same;
    const sameLabel = make("label", { class: "sightline-same" }, same, " One scale for all");
    const groups = new Map();
    for (const pane of data.panes) groups.set(pane.group, Math.max(groups.get(pane.group) || 0, pane.scale));
    sameLabel.hidden = groups.size === data.panes.length;
    colourLabel.hidden = data.panes.every((pane) => pane.signed);
    const told = make("output", { class: "sightline-told", "aria-live": "polite" });
    const hint = (data.points ? "Click a place to ask for it. " : data.boxes ? "Click a box to ask for it. " : "") + "Point at a picture to read its values, or choose it with the Tab key and use the arrow keys.";
    told.textContent = hint;

    const panes = data.panes.map((pane) => {
      const canvas = make("canvas", { tabindex: 0, role: "img", "aria-label": `${pane.title}. ${pane.note}` });
      canvas.width = data.width;
      canvas.height = data.height;
      const cross = make("span", { class: "sightline-cross", "aria-hidden": "true" });
      cross.hidden = true;
      const key = make("canvas", { class: "sightline-key", width: 256, height: 1, "aria-hidden": "true" });
      const low = make("span"), high = make("span");
      const figureElement = make(
        "figure", {},
        make("figcaption", {}, make("strong", {}, pane.title), make("span", {}, pane.note)),
        make("div", { class: "sightline-picture" }, canvas, ...(pane.mark ? [markOf(pane.mark)] : []), ...boxesOf(data.boxes || []), cross),
        make("div", { class: "sightline-scale" }, low, key, high, make("span", { class: "sightline-unit" }, pane.unit)),
      );
      return {
        ...pane, canvas, cross, key, low, high, element: figureElement,
        pen: canvas.getContext("2d"), placed: place(pane, data), diverging: palettes[data.diverging],
      };
    });

    let forms = null;
    function redraw() {
      if (!forms) return;
      const palette = palettes[chosen.colours];
      for (const pane of panes) {
        pane.shownScale = chosen.same ? groups.get(pane.group) : pane.scale;
        draw(pane, forms, data, { ...chosen, palette });
        drawKey(pane, pane.signed ? pane.diverging : palette);
      }
    }

    let at = null;
    function point(x, y) {
      at = [Math.min(Math.max(x, 0), data.width - 1), Math.min(Math.max(y, 0), data.height - 1)];
      const index = Math.floor(at[1]) * data.width + Math.floor(at[0]);
      const says = panes.map((pane) => {
        pane.cross.hidden = false;
        pane.cross.style.left = `${((at[0] + 0.5) / data.width) * 100}%`;
        pane.cross.style.top = `${((at[1] + 0.5) / data.height) * 100}%`;
        const value = pane.placed[index];
        if (Number.isNaN(value)) return `${pane.title}: the model never saw this place`;
        const share = pane.shownScale > 0 ? Math.round((100 * value) / pane.shownScale) : 0;
        return `${pane.title}: ${figure(value)}, ${share} % of the key`;
      });
      told.textContent = says.join("; ");
    }
    function leave() {
      at = null;
      told.textContent = hint;
      for (const pane of panes) pane.cross.hidden = true;
    }
    for (const pane of panes) {
      const picture = pane.canvas.parentElement; // also where a box lies over the canvas
      picture.addEventListener("pointermove", (event) => {
        const box = pane.canvas.getBoundingClientRect();
        point(((event.clientX - box.left) / box.width) * data.width, ((event.clientY - box.top) / box.height) * data.height);
      });
      if (data.points) {
        const told = ([x, y]) => choose(pane.canvas, `@${Math.round((x / data.width) * data.points[0])},${Math.round((y / data.height) * data.points[1])}`);
        pane.canvas.addEventListener("click", () => at && told(at));
        pane.canvas.addEventListener("keydown", (event) => event.key === "Enter" && at && told(at));
      }
      picture.addEventListener("pointerleave", leave);
      pane.canvas.addEventListener("blur", leave);
      pane.canvas.addEventListener("keydown", (event) => {
        const step = Math.max(1, Math.round(Math.max(data.width, data.height) / 40));
        const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
        if (!move) return;
        event.preventDefault();
        const [x, y] = at || [data.width / 2, data.height / 2];
        point(x + move[0], y + move[1]);
      });
    }
    const listen = (control, name, read) =>
      control.addEventListener("input", () => {
        chosen[name] = read();
        redraw();
      });
    listen(style, "style", () => style.value);
    listen(colours, "colours", () => colours.value);
    listen(strength, "strength", () => Number(strength.value));
    listen(threshold, "threshold", () => Number(threshold.value));
    listen(same, "same", () => same.checked);

    element.classList.add("sightline-viewer");
    element.replaceChildren(
      make("div", { class: "sightline-controls" }, styleLabel, colourLabel, strengthLabel, thresholdLabel, sameLabel),
      ...(data.words ? [wordsOf(data.words)] : []),
      make("div", { class: panes.length > 4 ? "sightline-panes sightline-many" : "sightline-panes" }, ...panes.map((pane) => pane.element)),
      told,
    );
    const ready = (image) => {
      forms = prepare(image, data.width, data.height);
      redraw();
      element.dataset.drawn = String(Number(element.dataset.drawn || 0) + 1);
    };
    if (!data.photo) return ready(null);
    const image = new Image();
    image.onload = () => ready(image);
    image.src = data.photo;
  };
})();

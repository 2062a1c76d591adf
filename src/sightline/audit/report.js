// The report: cards of pictures that can be filtered, sorted and searched, and a dialog with the viewer of one. No library, no request.
// Texts of a run are set as text and never parsed; a picture is known by its number, and #p12 in the address opens the 12th.
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse(byId(id).textContent);
  const data = parsed("data");
  const listed = data.kind === "index";
  const AT_ONCE = 200, CARD = [192, 144];
  const [RIGHT, WRONG, UNLABELLED, ERROR] = data.states;

  function make(kind, attributes, ...children) {
    const made = document.createElement(kind);
    for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // A name that may be broken where its parts end.
  function broken(name) {
    return name.split(/(?<=[_/.-])/).flatMap((part, at) => (at ? [make("wbr"), part] : [part]));
  }

  function percent(share) {
    if (share === null || share === undefined) return "";
    if (share < 0.001) return "under 0.1 %";
    return share >= 0.995 && share < 1 ? "over 99 %" : `${(100 * share).toFixed(share >= 0.095 ? 0 : 1)} %`;
  }
  const figure = (value) => (value === null || value === undefined ? "" : String(Number(value.toPrecision(3))));

  const entries = parsed("entries").map(([id, label, said, probability, state, evidence, border, why], at) => ({
    number: data.first + at, id, label, said, probability, evidence, border, why, state: data.states[state],
    sought: [id, data.names[label] || "", data.names[said] || ""].join("\n").toLowerCase(),
  }));
  const labelled = entries.some((one) => one.label >= 0);
  const entryOf = (number) => entries[number - data.first];
  const address = (number) => (listed ? `page-${String(Math.floor(number / data.perPage) + 1).padStart(4, "0")}.html#p${number}` : `#p${number}`);

  const blocks = new Map();
  function blockOf(number) {
    if (!blocks.has(number)) blocks.set(number, parsed(`d${number}`));
    return blocks.get(number);
  }
  // All maps of a kind have one palette, also where one of them has no value below 0.
  const paneOf = (map, block) => ({ ...map, view: block.view, signed: data.kinds.find((kind) => kind.name === map.kind).signed });
  const photoOf = (block) => (block.photo ? `data:image/jpeg;base64,${block.photo}` : "");
  const verdictOf = (one) => (one.state === ERROR ? ERROR : one.label < 0 ? "" : data.judged ? one.state : "labelled");

  // ------------------------------------------------------------------------------------------------------------ controls

  const chosen = { predicted: "", label: "", state: "", kind: 0, style: "heat", sort: "id", same: false, words: [] };
  let shown = entries;

  function field(name, text, options, read = (value) => value) {
    const list = make("select", { id: `by-${name}` }, ...options.map(([value, says]) => make("option", { value }, says)));
    list.addEventListener("change", () => {
      chosen[name] = read(list.value);
      name === "style" || name === "kind" ? redraw() : 0;
      if (name !== "style") refresh();
    });
    return make("label", {}, make("span", {}, text), list);
  }

  function classes(counts) {
    const known = counts.map((many, at) => [at, many]).filter(([, many]) => many > 0);
    known.sort((one, other) => other[1] - one[1] || (data.names[one[0]] < data.names[other[0]] ? -1 : 1));
    return [["", "any"], ...known.map(([at, many]) => [at, `${data.names[at]} (${many})`])];
  }

  function controls() {
    const search = make("input", { type: "search", id: "by-words", placeholder: "file or class", autocomplete: "off", spellcheck: "false" });
    let waiting = 0;
    search.addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        chosen.words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
        refresh();
      }, 80);
    });
    const states = [RIGHT, WRONG, UNLABELLED, ERROR].filter((state) => entries.some((one) => stateOf(one) === state));
    if (entries.some((one) => stateOf(one) === "labelled")) states.unshift("labelled");
    const sorts = [["id", "name"], ["sure", "surest first"], ["unsure", "least sure first"]];
    if (data.kinds.length)
      sorts.push(["evidence", "most evidence"], ["-evidence", "least evidence"], ["border", "most heat in the border"], ["-border", "least heat in the border"]);
    const parts = [
      make("label", {}, make("span", {}, "Search"), search),
      field("predicted", "Predicted", classes(data.predicted)),
      labelled ? field("label", "Label", classes(data.labelled)) : "",
      states.length > 1 ? field("state", "State", [["", "any"], ...states.map((state) => [state, state])]) : "",
      field("sort", "Order", sorts),
      data.kinds.length > 1 ? field("kind", "Map", data.kinds.map((kind, at) => [at, kind.name]), Number) : "",
    ];
    if (!listed && data.kinds.length) {
      const same = make("input", { type: "checkbox", id: "by-same" });
      same.addEventListener("change", () => {
        chosen.same = same.checked;
        redraw();
      });
      parts.push(
        field("style", "Show", window.sightlineDraw.styles),
        make("label", { class: "tick" }, same, make("span", {}, "One scale for all maps")),
      );
    }
    if (!listed) {
      const print = make("button", { type: "button", id: "print" }, "Print these");
      print.addEventListener("click", async () => {
        print.disabled = true;
        await everything;
        print.disabled = false;
        window.print();
      });
      parts.push(print);
    }
    byId("controls").append(...parts.filter(Boolean));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    if (!data.predicted.some((many) => many)) byId("by-predicted").disabled = true;
  }

  const stateOf = (one) => (one.state === ERROR || one.label < 0 || data.judged ? one.state : "labelled");

  const ORDERS = {
    sure: (one) => -one.probability, unsure: (one) => one.probability,
    evidence: (one) => -one.evidence[chosen.kind], "-evidence": (one) => one.evidence[chosen.kind],
    border: (one) => -one.border[chosen.kind], "-border": (one) => one.border[chosen.kind],
  };
  const KNOWN = {
    sure: (one) => one.probability, unsure: (one) => one.probability,
    evidence: (one) => one.evidence[chosen.kind], "-evidence": (one) => one.evidence[chosen.kind],
    border: (one) => one.border[chosen.kind], "-border": (one) => one.border[chosen.kind],
  };

  function choose() {
    const { predicted, label, state, words, sort } = chosen;
    const found = entries.filter(
      (one) =>
        (predicted === "" || one.said === Number(predicted)) &&
        (label === "" || one.label === Number(label)) &&
        (state === "" || stateOf(one) === state) &&
        words.every((word) => one.sought.includes(word)),
    );
    if (sort === "id") return found;
    const has = (one) => KNOWN[sort](one) !== null && KNOWN[sort](one) !== undefined;
    const known = found.filter(has);
    known.sort((one, other) => ORDERS[sort](one) - ORDERS[sort](other) || one.number - other.number);
    return [...known, ...found.filter((one) => !has(one))];
  }

  function refresh() {
    shown = choose();
    const most = listed ? AT_ONCE : shown.length;
    byId("cards").replaceChildren(...shown.slice(0, most).map(listed ? row : (one) => cardOf(one).element));
    byId("more").hidden = most >= shown.length;
    const all = entries.length.toLocaleString("en");
    byId("told").textContent =
      shown.length === entries.length ? `${all} picture${entries.length === 1 ? "" : "s"}` : `${shown.length.toLocaleString("en")} of ${all} pictures`;
    if (!listed) for (const one of shown) cardOf(one).note();
  }

  byId("more").addEventListener("click", () => {
    const list = byId("cards"), at = list.children.length;
    list.append(...shown.slice(at, at + AT_ONCE).map(row));
    byId("more").hidden = list.children.length >= shown.length;
    list.children[at].querySelector("a").focus();
  });

  // --------------------------------------------------------------------------------------------------------------- cards

  function mark(one) {
    const state = verdictOf(one);
    if (!state) return "";
    const sign = { [RIGHT]: "✓ ", [WRONG]: "✗ ", [ERROR]: "! " }[state] || "";
    return make("span", { class: `mark mark-${state}` }, sign + state);
  }

  function bar(share) {
    const inner = make("span"), outer = make("span", { class: "chance", "aria-hidden": "true" }, inner);
    inner.style.width = `${100 * Math.min(1, Math.max(0, share || 0))}%`;
    return outer;
  }

  function about(one) {
    if (one.state === ERROR) return [make("p", { class: "why", dir: "auto" }, `${one.why[0]}: ${one.why[2] || one.why[1]}`)];
    const parts = [];
    if (one.said >= 0)
      parts.push(make("p", { class: "said" }, make("bdi", {}, data.names[one.said]), make("span", {}, percent(one.probability)), bar(one.probability)));
    if (one.label >= 0) parts.push(make("p", { class: "label" }, make("bdi", {}, `label: ${data.names[one.label]}`)));
    return parts;
  }

  function row(one) {
    const evidence = figure(one.evidence[chosen.kind]), border = percent(one.border[chosen.kind]);
    const numbers = [evidence && `evidence ${evidence}`, border && `${border} in the border`].filter(Boolean).join(", ");
    return make(
      "li", { class: "row" }, make("a", { href: address(one.number), dir: "auto" }, one.id), mark(one), ...about(one),
      ...(numbers ? [make("p", { class: "soft" }, numbers)] : []),
    );
  }

  const cards = new Map();
  const visible = new Set();
  const watcher = new IntersectionObserver(
    (seen) => {
      for (const { target, isIntersecting } of seen) {
        const card = cards.get(Number(target.dataset.number));
        if (isIntersecting) {
          visible.add(card);
          card.draw();
        } else visible.delete(card);
      }
    },
    { rootMargin: "400px" },
  );

  function cardOf(one) {
    if (!cards.has(one.number)) cards.set(one.number, card(one));
    return cards.get(one.number);
  }

  function card(one) {
    const canvas = make("canvas", { "aria-hidden": "true" }), note = make("p", { class: "soft" }), of = make("p", { class: "soft of", dir: "auto" });
    const frame = make("span", { class: "picture" }, canvas);
    const element = make(
      "li", { class: "card", id: `p${one.number}`, "data-number": one.number },
      make("a", { href: address(one.number), class: "open" }, frame, make("span", { class: "name", dir: "auto" }, ...broken(one.id))),
      mark(one), ...about(one), of, note,
    );
    let image = null, drawn = "";
    const made = {
      element,
      // Loads the small picture; afterwards it can be drawn at once, as printing asks for.
      load: () =>
        new Promise((done) => {
          const photo = photoOf(blockOf(one.number));
          if (!photo || image) return done();
          image = new Image();
          image.onload = image.onerror = () => done();
          image.src = photo;
        }),
      draw: () => {
        const wish = `${chosen.kind} ${chosen.style} ${chosen.same}`;
        if (drawn === wish) return;
        const block = blockOf(one.number);
        if (block.photo && !image) made.load();
        if (block.photo && !image.complete) return image.addEventListener("load", made.draw, { once: true });
        drawn = wish;
        frame.hidden = !block.photo && !block.maps.length;
        const map = paint(canvas, block, image && image.naturalWidth ? image : null);
        of.textContent = map && map.of !== data.names[one.said] ? `map of ${map.title}` : "";
        element.dataset.drawn = wish;
      },
      note: () => {
        const evidence = figure(one.evidence[chosen.kind]), border = percent(one.border[chosen.kind]);
        const by = chosen.sort.replace("-", "");
        note.textContent = by === "evidence" && evidence ? `evidence ${evidence}` : by === "border" && border ? `${border} in the border` : "";
      },
    };
    watcher.observe(element);
    return made;
  }

  function paint(canvas, block, image) {
    const shrink = Math.min(CARD[0] / block.width, CARD[1] / block.height);
    const size = { width: Math.max(1, Math.round(block.width * shrink)), height: Math.max(1, Math.round(block.height * shrink)) };
    const kind = data.kinds[chosen.kind], map = kind && block.maps.find((one) => one.kind === kind.name);
    const nothing = { grid: [1, 1], values: "AAAAAA==", scale: 0, signed: false };
    const settings = { style: map ? chosen.style : "photo", period: 12 };
    if (map && chosen.same) settings.scale = kind.scale;
    window.sightlineDraw(canvas, image, map ? paneOf(map, block) : { ...nothing, view: block.view }, { ...data, ...size }, settings);
    return map;
  }

  function redraw() {
    for (const one of visible) one.draw();
  }

  // -------------------------------------------------------------------------------------------------------------- viewer

  const dialog = byId("viewer"), place = make("div", { class: "place" });
  const parts = {
    name: make("h2", { id: "viewer-name", dir: "auto", tabindex: -1 }), line: make("div"), more: make("div"),
    count: make("span", { class: "soft", "aria-live": "polite" }),
    before: make("button", { type: "button", "aria-label": "previous picture" }, "←"),
    after: make("button", { type: "button", "aria-label": "next picture" }, "→"),
    close: make("button", { type: "button" }, "Close"),
  };
  dialog.append(make("div", { class: "bar-of-dialog" }, parts.before, parts.after, parts.count, parts.close), parts.name, parts.line, place, parts.more);
  let open = null;

  function facts(map) {
    return make("dl", {}, ...map.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  function show(number) {
    const one = entryOf(number), block = blockOf(number);
    open = number;
    parts.name.textContent = one.id;
    const line = make("p", {}, ...[mark(one)].filter(Boolean));
    if (one.said >= 0) line.append(" The model says ", make("strong", {}, make("bdi", {}, data.names[one.said])), `, ${percent(one.probability)}`);
    if (one.label >= 0) line.append(one.said >= 0 ? "; the label is " : " The label is ", make("bdi", {}, data.names[one.label]));
    const says = block.says.map(([name, share, text]) => make("li", { class: "said" }, make("bdi", {}, name), make("span", {}, text), bar(share)));
    parts.line.replaceChildren(...(line.firstChild ? [line] : []));
    if (one.state === ERROR) parts.line.append(make("p", { class: "warn", dir: "auto" }, one.why.filter(Boolean).join(": ")));
    place.hidden = !block.maps.length;
    if (block.maps.length)
      window.sightlineViewer(place, {
        ...data, photo: photoOf(block), width: block.width, height: block.height, style: "heat",
        panes: block.maps.map((map) => paneOf(map, block)),
      });
    const notices = [...new Set([...block.notices, ...block.maps.flatMap((map) => map.notices)])];
    parts.more.replaceChildren(
      ...(says.length ? [make("h3", {}, "The model says"), make("ul", { class: "says" }, ...says)] : []),
      ...block.maps.map((map) => make("section", { class: "facts" }, make("h3", {}, make("bdi", {}, `${map.title}: ${map.kind}`)), facts(map))),
      ...(block.facts.length ? [make("p", { class: "soft" }, block.facts.map((fact) => fact.join(" ")).join("; "))] : []),
      ...(notices.length ? [make("h3", {}, "What limits this"), make("ul", {}, ...notices.map((notice) => make("li", { dir: "auto" }, notice)))] : []),
    );
    const around = neighbours();
    parts.count.textContent = around.at < 0 ? "" : `${(around.at + 1).toLocaleString("en")} of ${around.list.length.toLocaleString("en")}`;
    parts.before.disabled = !around.list[around.at - 1];
    parts.after.disabled = !around.list[around.at + 1];
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function neighbours() {
    const list = shown.some((one) => one.number === open) ? shown : entries;
    return { list, at: list.findIndex((one) => one.number === open) };
  }

  function remember(hash) {
    history.replaceState(null, "", hash || location.pathname + location.search);
  }

  function step(by) {
    const { list, at } = neighbours(), next = list[at + by];
    if (!next) return;
    remember(`#p${next.number}`);
    show(next.number);
  }

  function follow() {
    const found = /^#p([0-9]{1,9})$/.exec(location.hash);
    if (found && !listed && entryOf(Number(found[1]))) show(Number(found[1]));
    else if (dialog.open) dialog.close();
  }

  parts.before.addEventListener("click", () => step(-1));
  parts.after.addEventListener("click", () => step(1));
  parts.close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => {
    if (/^#p[0-9]+$/.test(location.hash)) remember("");
    const card = cards.get(open);
    if (card && card.element.isConnected) card.element.querySelector("a").focus();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.target.matches("canvas, input, select") || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") {
      event.preventDefault();
      step(event.key === "ArrowLeft" ? -1 : 1);
    }
  });
  window.addEventListener("hashchange", follow);

  // -------------------------------------------------------------------------------------------------- audit, print, start

  for (const canvas of document.querySelectorAll("canvas[data-mean]")) {
    const map = data.means[Number(canvas.dataset.mean)], [h, w] = map.grid, size = { width: w * 24, height: h * 24 };
    const view = { resized: [size.width, size.height], offset: [0, 0], input: [size.width, size.height] };
    window.sightlineDraw(canvas, null, { ...map, view }, { ...data, ...size }, { style: "map" });
  }

  // A few at a time and in their order, after what is seen: what printing needs must be there before it begins.
  async function loadAll() {
    if (listed) return;
    for (let at = 0; at < entries.length; at += 25) {
      await new Promise((done) => (window.requestIdleCallback || setTimeout)(done));
      await Promise.all(entries.slice(at, at + 25).map((one) => cardOf(one).load()));
    }
  }
  let closed = [];
  window.addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open], .cleared)")];
    for (const one of closed) one.open = true;
    if (!listed) for (const one of shown) cardOf(one).draw();
  });
  window.addEventListener("afterprint", () => closed.forEach((one) => (one.open = false)));
  if (window.matchMedia("(max-width: 40rem)").matches) byId("filters").open = false;

  controls();
  refresh();
  follow();
  const everything = loadAll().then(() => (document.documentElement.dataset.ready = "all"));
})();

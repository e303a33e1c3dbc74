// The views of the explorer. Slices and values arrive as messages, which no notebook stores; the place of a click or
// of a drag is sent to the kernel. One message is under way at a time, so a slow kernel skips places of a drag.

function add(parent, name = "", text = "", kind = "div") {
  const node = parent.appendChild(document.createElement(kind));
  node.className = name;
  node.textContent = text;
  return node;
}

function render({ model, el }) {
  el.classList.add("resdm-views");
  const content = add(el), busy = add(el, "busy");
  let page, point, sent, waiting = false;

  const low = (axis) => page.field[axis][0] - 0.5, size = (axis) => page.field[axis][1] + 0.5 - low(axis); // mm
  const all = (selector) => [...content.querySelectorAll(selector)];

  function build(next) {
    page = next;
    content.replaceChildren();
    const head = add(content, "head");
    add(head, "", page.title, "b");
    add(head, "place");
    add(head, "", page.notice, "i");
    add(content, "detail", page.detail);
    const grid = add(content, "grid");
    const tracers = [...new Set(page.columns.map((column) => column.tracer))];
    const groups = tracers.map((tracer) => page.columns.filter((column) => column.tracer === tracer));
    grid.style.gridTemplateColumns = groups.map((columns) => `auto repeat(${columns.length}, minmax(0, 1fr))`).join(" ");
    const row = (label, fill) => {
      for (const columns of groups) {
        add(grid, "label", columns === groups[0] ? label : "");
        for (const column of columns) fill(add(grid), column);
      }
    };
    groups.forEach((columns, i) => {
      add(grid, "label");
      add(grid, tracers[i] && "tracer", tracers[i]).style.gridColumn = `span ${columns.length}`;
    });
    row("", (cell, column) => (cell.textContent = column.title));
    for (const [axis, [right, up]] of Object.entries(page.axes)) {
      row(axis, (cell, column) => {
        cell.classList.add("pane", column.signed ? "light" : "dark");
        const slice = add(cell, "slice");
        slice.dataset.axis = axis;
        slice.style.width = `${(100 * size(right)) / size("y")}%`; // the field is longest in y
        add(slice, "", "", "img").style.aspectRatio = `${size(right)} / ${size(up)}`;
        add(slice, "across");
        add(slice, "along");
        page.marks[axis].forEach((mark) => add(slice, "mark", mark));
      });
    }
    row("", (cell, column) => {
      add(cell, "bar").style.background = `linear-gradient(to right, ${column.colours})`;
      const ends = add(cell, "ends");
      for (const end of column.ends) add(ends, "", end, "span");
      add(cell, "unit", column.unit);
    });
    row("here", (cell) => cell.classList.add("value", "here"));
    row("cortex", (cell, column) => {
      cell.classList.add("value");
      cell.textContent = column.cortex;
    });
  }

  function drawCrossHairs() {
    for (const slice of all(".slice")) {
      const [x, y] = page.axes[slice.dataset.axis].map((axis) => (100 * (point[axis] - low(axis))) / size(axis));
      slice.querySelector(".across").style.bottom = `${y}%`;
      slice.querySelector(".along").style.left = `${x}%`;
    }
  }

  function show(message, buffers) {
    [...message.planes].forEach((axis, k) => {
      all(`.slice[data-axis=${axis}] img`).forEach((image, i) => {
        URL.revokeObjectURL(image.src);
        const png = new Blob([buffers[k * page.columns.length + i]], { type: "image/png" });
        image.src = URL.createObjectURL(png);
      });
    });
    all(".here").forEach((cell, i) => (cell.textContent = message.here[i]));
    content.querySelector(".place").textContent = message.place;
    if (!waiting) point = message.point;
    drawCrossHairs();
  }

  function send() {
    waiting = true;
    sent = { ...point };
    model.send({ point: sent });
  }

  function receive(message, buffers) {
    if ("busy" in message) {
      busy.textContent = message.busy;
      busy.classList.toggle("on", message.busy !== "");
    }
    if (message.page) build(message.page);
    if (message.planes) show(message, buffers);
    if (message.moved) {
      waiting = false;
      if ([..."xyz"].some((axis) => point[axis] !== sent[axis])) send();
    }
  }

  function move(event) {
    const slice = event.target.closest(".slice");
    if (!slice || !(event.buttons & 1)) return;
    const box = slice.getBoundingClientRect(), [right, up] = page.axes[slice.dataset.axis];
    const fractions = [[right, (event.clientX - box.left) / box.width], [up, (box.bottom - event.clientY) / box.height]];
    for (const [axis, fraction] of fractions) {
      const mm = Math.round(low(axis) + fraction * size(axis));
      point[axis] = Math.min(page.field[axis][1], Math.max(page.field[axis][0], mm));
    }
    drawCrossHairs(); // at once; the slices follow
    if (event.type === "pointerdown" || !waiting) send();
  }

  content.addEventListener("pointerdown", move);
  content.addEventListener("pointermove", move);
  model.on("msg:custom", receive);
  model.send({ ready: true });
  return () => model.off("msg:custom", receive);
}

export default { render };

// A canvas to draw on, by pointer or keyboard: white on black, as handwritten digits are published.

const SIZE = 280;
const STEP = 10;

export class Drawing {
  constructor(canvas, changed) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.changed = changed;
    this.pen = { x: SIZE / 2, y: SIZE / 2, down: false };
    this.timer = 0;
    this.clear();
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.follow(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => this.end());
    canvas.addEventListener("keydown", (event) => this.press(event));
  }

  // What the model takes decides how thick a stroke is and how much room is left around: 8×8 digits fill
  // their frame, those of MNIST leave 4 of 28 pixels on each side.
  fit({ width }) {
    this.small = width < 16;
    this.context.lineWidth = this.small ? 38 : 22;
  }

  clear() {
    const width = this.context.lineWidth;
    this.context.fillStyle = "#000";
    this.context.fillRect(0, 0, SIZE, SIZE);
    Object.assign(this.context, { strokeStyle: "#fff", lineCap: "round", lineJoin: "round", lineWidth: width });
    this.pen.down = false;
    clearTimeout(this.timer);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * SIZE, y: ((event.clientY - box.top) / box.height) * SIZE };
  }

  begin(event) {
    if (event.button !== 0) return; // the others open menus
    this.canvas.setPointerCapture(event.pointerId);
    clearTimeout(this.timer);
    Object.assign(this.pen, this.place(event), { down: true });
    this.line(this.pen.x, this.pen.y);
  }

  follow(event) {
    if (!this.pen.down || !event.buttons) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) {
      const { x, y } = this.place(each);
      this.line(x, y);
    }
  }

  end() {
    if (!this.pen.down) return;
    this.pen.down = false;
    this.soon();
  }

  press(event) {
    const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
    if (event.key in moves) {
      const [dx, dy] = moves[event.key];
      const x = Math.max(0, Math.min(SIZE, this.pen.x + dx));
      const y = Math.max(0, Math.min(SIZE, this.pen.y + dy));
      if (this.pen.down) this.line(x, y);
      else Object.assign(this.pen, { x, y });
    } else if (event.key === " ") {
      if (this.pen.down) this.end();
      else {
        this.pen.down = true;
        this.line(this.pen.x, this.pen.y);
      }
    } else if (event.key === "Escape") {
      this.clear();
    } else return;
    event.preventDefault();
  }

  line(x, y) {
    this.context.beginPath();
    this.context.moveTo(this.pen.x, this.pen.y);
    this.context.lineTo(x, y);
    this.context.stroke();
    Object.assign(this.pen, { x, y });
  }

  // A digit may take several strokes: wait for the next one a moment.
  soon() {
    clearTimeout(this.timer);
    this.timer = setTimeout(async () => {
      const picture = await this.picture();
      if (picture) this.changed(picture);
    }, 350);
  }

  inked() {
    const { data } = this.context.getImageData(0, 0, SIZE, SIZE);
    let [left, top, right, bottom] = [SIZE, SIZE, -1, -1];
    for (let y = 0; y < SIZE; y += 1) {
      for (let x = 0; x < SIZE; x += 1) {
        if (data[(y * SIZE + x) * 4] > 64) {
          left = Math.min(left, x);
          right = Math.max(right, x);
          top = Math.min(top, y);
          bottom = Math.max(bottom, y);
        }
      }
    }
    return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
  }

  // The drawing as a PNG, centred and as large as the training data's digits; null if nothing is drawn.
  async picture() {
    const box = this.inked();
    if (!box) return null;
    const room = this.small ? SIZE : (SIZE * 20) / 28;
    const scale = room / Math.max(box.width, box.height);
    const [width, height] = [box.width * scale, box.height * scale];
    const target = document.createElement("canvas");
    target.width = target.height = SIZE;
    const context = target.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, SIZE, SIZE);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.canvas, box.left, box.top, box.width, box.height, (SIZE - width) / 2, (SIZE - height) / 2, width, height);
    return new Promise((resolve) => target.toBlob(resolve, "image/png"));
  }
}

// Surface: a canvas as sharp as the screen, and what was drawn where, for presses.

export class Surface {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.hits = [];
    this.observed = 0; // reading clientWidth between two changes of the page would lay it out each time
    new ResizeObserver(([entry]) => (this.observed = entry.contentRect.width)).observe(canvas);
  }

  /** Return the width in CSS pixels. */
  get width() {
    return Math.max(this.observed || this.canvas.clientWidth, 1);
  }

  /** Clear the canvas and give it a height in CSS pixels; returns its width, which is that on the page by default. */
  begin(height, width = this.width) {
    const ratio = devicePixelRatio || 1;
    const [pixelWidth, pixelHeight] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (this.canvas.width !== pixelWidth || this.canvas.height !== pixelHeight) {
      this.canvas.width = pixelWidth;
      this.canvas.height = pixelHeight;
      this.canvas.style.height = `${height}px`;
    }
    this.context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.context.clearRect(0, 0, width, height);
    this.hits = [];
    return width;
  }

  fill(style, x, y, width, height) {
    this.context.fillStyle = style;
    this.context.fillRect(x, y, width, height);
  }

  frame(style, x, y, width, height, lineWidth = 1) {
    this.context.strokeStyle = style;
    this.context.lineWidth = lineWidth;
    this.context.strokeRect(x + lineWidth / 2, y + lineWidth / 2, width - lineWidth, height - lineWidth);
  }

  /** Write a text; return its width. */
  text(style, text, x, y, align = "left") {
    this.context.font = "12px system-ui, sans-serif";
    this.context.textAlign = align;
    this.context.textBaseline = "middle";
    this.context.fillStyle = style;
    this.context.fillText(text, x, y);
    return this.context.measureText(text).width;
  }

  /** Remember that `what` is drawn in a rectangle. */
  hit(what, x, y, width, height) {
    this.hits.push({ what, x, y, width, height });
  }

  /** Return what was drawn last at the point of a pointer event, with its rectangle, or undefined. */
  at(event) {
    const [x, y] = [event.offsetX, event.offsetY];
    return this.hits.findLast((one) => x >= one.x && x < one.x + one.width && y >= one.y && y < one.y + one.height);
  }

  /** Return the rectangle of a hit in the window. */
  place(hit) {
    const box = this.canvas.getBoundingClientRect();
    return new DOMRect(box.x + hit.x, box.y + hit.y, hit.width, hit.height);
  }
}

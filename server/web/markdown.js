// A subset of Markdown, rendered as nodes: text never becomes markup.

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|\*[^*\n]+\*)/;

/** Return the nodes of a Markdown text. */
export function markdown(text) {
  const nodes = [];
  const parts = text.split(/^```[^\n]*\n?/m);
  parts.forEach((part, index) => (index % 2 ? nodes.push(codeBlock(part)) : nodes.push(...blocks(part))));
  return nodes;
}

function codeBlock(text) {
  const block = document.createElement("pre");
  const code = document.createElement("code");
  code.textContent = text;
  block.append(code);
  return block;
}

function blocks(text) {
  const nodes = [];
  let list = null;
  for (const line of text.split("\n")) {
    const item = /^\s*(?:[-*]|\d+\.)\s+(.*)$/.exec(line);
    if (item) {
      const kind = /^\s*\d/.test(line) ? "OL" : "UL";
      if (list?.tagName !== kind) nodes.push((list = document.createElement(kind)));
      list.append(element("li", item[1]));
      continue;
    }
    list = null;
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (heading) nodes.push(element("h3", heading[2]));
    else if (line.trim()) nodes.push(element("p", line));
  }
  return nodes;
}

function element(name, text) {
  const node = document.createElement(name);
  for (const part of text.split(INLINE)) {
    if (/^`.+`$/.test(part)) node.append(leaf("code", part.slice(1, -1)));
    else if (/^\*\*.+\*\*$/.test(part)) node.append(leaf("strong", part.slice(2, -2)));
    else if (/^\*.+\*$/.test(part)) node.append(leaf("em", part.slice(1, -1)));
    else node.append(part);
  }
  return node;
}

function leaf(name, text) {
  const node = document.createElement(name);
  node.textContent = text;
  return node;
}

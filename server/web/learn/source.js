// Finding a function in the text of a Python file.

const indent = (line) => line.length - line.trimStart().length;

/** Return the lines of a function such as "Attention.forward", without its docstring: { number, text } of each. */
export function functionIn(text, symbol) {
  const lines = text.split("\n");
  let start = 0;
  for (const name of symbol.split(".")) {
    const pattern = new RegExp(`^\\s*(class|def|async def) ${name}\\b`);
    const found = lines.findIndex((line, index) => index >= start && pattern.test(line));
    if (found < 0) throw new Error(`${symbol} is not in this file.`);
    start = found;
  }
  const depth = indent(lines[start]);
  let end = start + 1;
  while (end < lines.length && !endsBefore(lines[end], depth)) end++;
  while (!lines[end - 1].trim()) end--;
  const all = lines.slice(start, end).map((line, index) => ({ number: start + index + 1, text: line.slice(depth) }));
  const first = all.findIndex((line) => line.text.trim().startsWith('"""'));
  if (first < 0) return all;
  const isShort = /"""$/.test(all[first].text.trim().slice(3));
  const last = isShort ? first : all.findIndex((line, index) => index > first && line.text.trim().endsWith('"""'));
  return [...all.slice(0, first), ...all.slice(last + 1)];
}

/** Return whether a line is outside of a function at this depth; the end of its signature is inside. */
const endsBefore = (line, depth) => line.trim() !== "" && indent(line) <= depth && !line.trim().startsWith(")");

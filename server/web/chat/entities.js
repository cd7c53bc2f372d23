// Character references in Markdown, such as &amp; and &#x2192;. Unknown names stay as they are.

const NAMES = {
  amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0", copy: "©", reg: "®", trade: "™", deg: "°",
  plusmn: "±", times: "×", divide: "÷", middot: "·", bull: "•", hellip: "…", ndash: "–", mdash: "—",
  lsquo: "‘", rsquo: "’", ldquo: "“", rdquo: "”", laquo: "«", raquo: "»", larr: "←", rarr: "→", uarr: "↑",
  darr: "↓", harr: "↔", rArr: "⇒", hArr: "⇔", le: "≤", ge: "≥", ne: "≠", asymp: "≈", infin: "∞", sum: "∑",
  radic: "√", pi: "π", micro: "µ", sect: "§", para: "¶", euro: "€", pound: "£", yen: "¥", cent: "¢",
  frac12: "½", sup2: "²", sup3: "³", alpha: "α", beta: "β", gamma: "γ", delta: "δ", lambda: "λ",
};

const REFERENCE = /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|([A-Za-z][A-Za-z0-9]{1,7}));/g;

/** Return a text with its character references replaced. */
export function decoded(text) {
  if (!text.includes("&")) return text;
  return text.replace(REFERENCE, (whole, decimal, hexadecimal, name) => {
    if (name) return Object.hasOwn(NAMES, name) ? NAMES[name] : whole;
    const number = decimal ? Number(decimal) : parseInt(hexadecimal, 16);
    const isCharacter = number > 0 && number <= 0x10ffff && !(number >= 0xd800 && number <= 0xdfff);
    return isCharacter ? String.fromCodePoint(number) : "\ufffd"; // as CommonMark says
  });
}

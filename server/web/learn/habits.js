// Names for what a head does, by its mean weights on some tokens.

const LEAST = 0.5; // of the weight, for a name

export const HABITS = {
  first: { mark: "F", words: "the first token" },
  previous: { mark: "P", words: "the previous token" },
  same: { mark: "S", words: "an earlier token that is the same" },
  other: { mark: "·", words: "none of these" },
};

/** Return the name of the habit of a head with these mean weights: on the first, previous and same tokens. */
export function habitOf([first, previous, same]) {
  const found = [["first", first], ["previous", previous], ["same", same]].filter(([, share]) => (share ?? 0) > LEAST);
  found.sort(([, a], [, b]) => b - a);
  return found.length ? found[0][0] : "other";
}

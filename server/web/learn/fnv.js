// A short hash, to compare tokens and to name files. It protects nothing.

/** Return the FNV-1a hash of bytes, in 64 bits, as 16 hexadecimal digits. */
export function hashOf(bytes) {
  let hash = 0xcbf29ce484222325n;
  for (const byte of bytes) hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  return hash.toString(16).padStart(16, "0");
}

/** Return the hash of token ids, four bytes each, little-endian. */
export const hashOfTokens = (tokenIds) => hashOf(new Uint8Array(Uint32Array.from(tokenIds).buffer));

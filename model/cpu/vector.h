// What the kernels do with sixteen numbers at a time, as AVX-512, AVX2, NEON or plain code, whatever the compiler's flags
// say. Intrinsics stand only where its vector types lack the operation: products of pairs of bfloat16 and quads of bytes.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>

#include "lanes.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace caravan {

struct bf16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

constexpr int64_t kLanes = 16;
#if defined(__AVX512F__)
constexpr bool kHasWideRegisters = true;  // 32 of sixteen floats
constexpr int kUnrolled = 16;
#else
constexpr bool kHasWideRegisters = false;
constexpr int kUnrolled = 1;  // steps of a sum of products that the compiler sees at once; of more it keeps too much
#endif

inline f32x16 splat(float x) { return x - f32x16{}; }
inline i32x16 splat(int32_t x) { return x - i32x16{}; }

inline f32x16 widen(u16x16 x) { return (f32x16)(convert<u32x16>(x) << 16); }

// To the nearest bfloat16, ties to even, in the low half of each lane; NaN stays NaN.
inline u32x16 bf16_bits(f32x16 x) {
  u32x16 bits = (u32x16)x;
  u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return select(x == x, rounded, bits >> 16 | 0x40);
}
inline f32x16 load_floats(const float* from) { return load<f32x16>(from); }
inline f32x16 load_floats(const bf16* from) { return widen(load<u16x16>(from)); }
inline f32x16 load_floats(const float16* from) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__) && defined(__F16C__)
  return {_mm256_cvtph_ps(load<__m128i>(from)), _mm256_cvtph_ps(load<__m128i>(from + 8))};
#else  // exponents are 112 apart; a float multiplication sets subnormal numbers right
  u32x16 bits = convert<u32x16>(load<u16x16>(from));
  u32x16 magnitude = (bits & 0x7fff) << 13;
  f32x16 wide = (f32x16)magnitude * 0x1p112f;
  wide = select(magnitude >= (0x7c00u << 13), (f32x16)(magnitude + (224u << 23)), wide);
  return (f32x16)((u32x16)wide | (bits & 0x8000) << 16);
#endif
}
// Sixteen signed bytes. (The compiler's own conversion takes them one by one.)
inline f32x16 load_signed_bytes(const void* from) {
#if defined(__AVX512F__)
  return convert<f32x16>((i32x16)_mm512_cvtepi8_epi32(load<__m128i>(from)));
#elif defined(__AVX2__)
  using Half = decltype(i32x16::low);
  const int64_t low = load<int64_t>(from), high = load<int64_t>((const char*)from + 8);
  const i32x16 wide = {(Half)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(low)), (Half)_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(high))};
  return convert<f32x16>(wide);
#else
  return convert<f32x16>(convert<i32x16>(load<i8x16>(from)));
#endif
}
// Sixteen numbers of type E4M3 without a sign: as float16 with three bits of fraction their exponents are 8 apart.
inline f32x16 load_e4m3(const uint8_t* from) {
  uint16_t bits[kLanes];
  for (int i = 0; i < kLanes; i++) bits[i] = from[i] << 7;
  return load_floats((const float16*)bits) * 0x1p8f;
}
inline void store_floats(float* to, f32x16 x) { store(to, x); }
inline void store_floats(bf16* to, f32x16 x) {
#if defined(__AVX512BF16__)  // one instruction; numbers below the smallest normal one become zero
  store(to, (__m256i)_mm512_cvtneps_pbh((__m512)x));
#else
  store(to, convert<u16x16>(bf16_bits(x)));
#endif
}

// The first `count` of sixteen; the others are zero.
template <class E>
inline f32x16 load_floats(const E* from, int64_t count) {
  if (count == kLanes) return load_floats(from);
  E padded[kLanes] = {};
  std::memcpy(padded, from, count * sizeof(E));
  return load_floats(padded);
}

template <class E>
inline void store_floats(E* to, f32x16 x, int64_t count) {
  if (count == kLanes) return store_floats(to, x);
  E padded[kLanes];
  store_floats(padded, x);
  std::memcpy(to, padded, count * sizeof(E));
}

// The bits of x under the mask, and other bits set.
inline u32x16 select_bits(u32x16 x, uint32_t mask, uint32_t set) {
#if defined(__AVX512F__)  // one instruction: (x & mask) | set
  return (u32x16)_mm512_ternarylogic_epi32((__m512i)x, _mm512_set1_epi32(mask), _mm512_set1_epi32(set), 0xea);
#else
  return (x & mask) | set;
#endif
}

inline f32x16 maximum(f32x16 a, f32x16 b) { return select(a > b, a, b); }

// Of all lanes: halves with halves, until one is left.
template <class V, class F>
inline auto reduce(const V& x, const F& f) {
  if constexpr (kIsHalves<V>) {
    return reduce(f(x.low, x.high), f);
  } else if constexpr (sizeof x == 4 * sizeof x[0]) {
    return f(f(x[0], x[2]), f(x[1], x[3]));
  } else {
    using Half = Native<std::remove_cvref_t<decltype(x[0])>, sizeof x / 2>;
    return reduce(f(load<Half>(&x), load<Half>((const char*)&x + sizeof x / 2)), f);
  }
}

inline float sum_of(const f32x16& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  return reduce(x, [](auto a, auto b) { return a + b; });
#endif
}

inline int32_t sum_of(const i32x16& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  return reduce(x, [](auto a, auto b) { return a + b; });
#endif
}

inline float maximum_of(const f32x16& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  return reduce(x, [](auto a, auto b) { return select(a > b, a, b); });
#endif
}

inline uint32_t maximum_of(const u32x16& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epu32((__m512i)x);
#else
  return reduce(x, [](auto a, auto b) { return select(a > b, a, b); });
#endif
}

// 2 to the power of x, to about one unit in the last place of a float; below -127 it is 0. Exactly 1 at 0.
// x = n + f with |f| <= 1/2; 2^f is its Taylor polynomial, n goes into the exponent.
[[gnu::always_inline]] inline f32x16 exp2(f32x16 x) {
#if defined(__AVX512F__)
  x = (f32x16)_mm512_max_ps(_mm512_set1_ps(-150.0f), (__m512)x);  // NaN, the second, stays
  f32x16 n = (f32x16)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  f32x16 f = x - n;
#else
  x = select(x < -127.0f, splat(-127.0f), x);
  x = select(x > 128.0f, splat(128.0f), x);
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction
  f32x16 shifted = x + shift;
  f32x16 f = x - (shifted - shift);
#endif
  f32x16 p = 1.5403530e-4f * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
#if defined(__AVX512F__)
  return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
  i32x16 n = (i32x16)shifted - 0x4b400000;
  return p * (f32x16)((n + 127) << 23);
#endif
}

// What scales numbers to a root mean square of one. Source: RMSNorm (arXiv:1910.07467), equation 4.
template <class E>
inline float rms_scale(const E* from, int64_t count, float eps) {
  f32x16 squares = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    f32x16 x = load_floats(from + i, std::min(kLanes, count - i));
    squares += x * x;
  }
  return 1.0f / std::sqrt(sum_of(squares) / count + eps);
}

// The weight of a norm in bfloat16 or float32, or neither: there is no norm.
struct NormWeight {
  const bf16* narrow;
  const float* wide;
  explicit operator bool() const { return narrow || wide; }
  f32x16 load(int64_t i, int64_t count) const {
    return wide ? load_floats(wide + i, count) : load_floats(narrow + i, count);
  }
};

constexpr float kLog2E = 1.44269504f;

// cap tanh(x / cap). Source: Gemma 2 (arXiv:2408.00118), section 2.
inline f32x16 soft_cap(f32x16 x, float cap) { return cap - 2 * cap / (1.0f + exp2(2 * kLog2E / cap * x)); }

// What a row brings to a product with sixteen pairs of bfloat16 or quads of bytes. Where the processor has no such
// product it is done in two parts: with the first and the second of the pairs in float32, with the first and the third
// and then the others of the quads in 16 bits. `part_of` is one part of the sixteen, `dot` adds what a row does with it.
#if defined(__AVX512BF16__)
struct Pair {
  static constexpr int kParts = 1;
  uint32_t parts[1];
};
inline Pair pair_of(uint32_t bits) { return {{bits}}; }
template <int kPart>
inline u32x16 part_of(Pair, const u32x16& pairs) { return pairs; }
inline f32x16 dot(const f32x16& sum, uint32_t a, const u32x16& b) {
  return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
}
#else
struct Pair {
  static constexpr int kParts = 2;
  float parts[2];
};
inline Pair pair_of(uint32_t bits) {
  const uint32_t first = bits << 16, second = bits & 0xffff0000;
  return {{std::bit_cast<float>(first), std::bit_cast<float>(second)}};
}
template <int kPart>
inline f32x16 part_of(Pair, const u32x16& pairs) { return (f32x16)(kPart ? pairs & 0xffff0000 : pairs << 16); }
#endif
struct Single {
  static constexpr int kParts = 1;
  float parts[1];
};
template <int kPart>
inline f32x16 part_of(Single, const f32x16& numbers) { return numbers; }
inline f32x16 dot(const f32x16& sum, float a, const f32x16& b) { return sum + a * b; }

#if defined(__AVX512VNNI__)
struct Quad {
  static constexpr int kParts = 1;
  int32_t parts[1];
};
inline Quad quad_of(uint32_t bytes) { return {{(int32_t)bytes}}; }
template <int kPart>
inline u32x16 part_of(Quad, const u32x16& quads) { return quads; }
inline i32x16 dot(const i32x16& sum, int32_t a, const u32x16& b) {
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, _mm512_set1_epi32(a));
}
#else
struct Quad {
  static constexpr int kParts = 2;
  int32_t parts[2];
};
inline Quad quad_of(uint32_t bytes) {
  auto wide = [&](int i) { return (int32_t)(int8_t)(bytes >> 8 * i); };
  return {{(wide(0) & 0xffff) | wide(2) << 16, (wide(1) & 0xffff) | wide(3) << 16}};
}
template <int kPart>
inline u32x16 part_of(Quad, const u32x16& quads) { return (kPart ? quads >> 8 : quads) & 0x00ff00ff; }
inline i32x16 dot(const i32x16& sum, int32_t a, const u32x16& b) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  auto half = [&](auto sum, auto pairs) {
    // As the compiler's own addition it would add up products first and run out of registers for them, or copy each sum.
    asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi32(a))));
    return sum;
  };
  return {half(sum.low, b.low), half(sum.high, b.high)};
#else
  return sum + (int32_t)(int16_t)a * (i32x16)(b & 0xffff) + (a >> 16) * (i32x16)(b >> 16);
#endif
}
#endif

// sums[r][c] += factors[r] times columns[c], for R rows and C groups of sixteen columns.
template <int R, int C, class Factor, class Columns, class Sum, class F>
inline void add_products(const F& factor, const Columns (&columns)[C], Sum (&sums)[R][C]) {
  auto add = [&](auto constant) {
    constexpr int kPart = decltype(constant)::value;
    decltype(part_of<kPart>(Factor{}, columns[0])) part[C];
    for (int c = 0; c < C; c++) part[c] = part_of<kPart>(Factor{}, columns[c]);
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
      const auto a = factor(r).parts[kPart];
#pragma GCC unroll 4
      for (int c = 0; c < C; c++) sums[r][c] = dot(sums[r][c], a, part[c]);
    }
  };
  add(std::integral_constant<int, 0>{});
  if constexpr (Factor::kParts == 2) add(std::integral_constant<int, 1>{});
}

}  // namespace caravan

// Sixteen numbers side by side, in the compiler's own vector types: AVX-512, AVX2, NEON or plain code, as its flags say.
// Intrinsics stand only where those types lack the operation: products of pairs of bfloat16 and of quads of bytes.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace caravan {

using f32x16 = float __attribute__((vector_size(64)));
using i32x16 = int32_t __attribute__((vector_size(64)));
using u32x16 = uint32_t __attribute__((vector_size(64)));
using u16x16 = uint16_t __attribute__((vector_size(32)));
using i8x16 = int8_t __attribute__((vector_size(16)));

struct bf16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

constexpr int64_t kLanes = 16;
#if defined(__AVX512F__)
constexpr bool kHasManyRegisters = true;  // 32 of sixteen floats
#else
constexpr bool kHasManyRegisters = false;
#endif

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

inline f32x16 splat(float x) { return x - f32x16{}; }
inline i32x16 splat(int32_t x) { return x - i32x16{}; }

inline f32x16 widen(u16x16 x) { return (f32x16)(__builtin_convertvector(x, u32x16) << 16); }

// To the nearest bfloat16, ties to even, in the low half of each lane; NaN stays NaN.
inline u32x16 bf16_bits(f32x16 x) {
  u32x16 bits = (u32x16)x;
  u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return x == x ? rounded : (bits >> 16 | 0x40);
}
inline f32x16 load_floats(const float* from) { return load<f32x16>(from); }
inline f32x16 load_floats(const bf16* from) { return widen(load<u16x16>(from)); }
inline f32x16 load_floats(const float16* from) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
  f32x16 wide;
  store(&wide, _mm256_cvtph_ps(load<__m128i>(from)));
  store((char*)&wide + 32, _mm256_cvtph_ps(load<__m128i>(from + 8)));
  return wide;
#else  // exponents are 112 apart; a float multiplication sets subnormal numbers right
  u32x16 bits = __builtin_convertvector(load<u16x16>(from), u32x16);
  u32x16 magnitude = (bits & 0x7fff) << 13;
  f32x16 wide = (f32x16)magnitude * 0x1p112f;
  wide = magnitude >= 0x7c00u << 13 ? (f32x16)(magnitude + (224u << 23)) : wide;
  return (f32x16)((u32x16)wide | (bits & 0x8000) << 16);
#endif
}
inline void store_floats(float* to, f32x16 x) { store(to, x); }
inline void store_floats(bf16* to, f32x16 x) { store(to, __builtin_convertvector(bf16_bits(x), u16x16)); }

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

inline f32x16 maximum(f32x16 a, f32x16 b) { return a > b ? a : b; }

inline float sum_of(f32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; i++) x[i] += x[i + width];
  return x[0];
#endif
}

inline int32_t sum_of(i32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x);
#else
  int32_t sum = 0;
  for (int i = 0; i < kLanes; i++) sum += x[i];
  return sum;
#endif
}

inline float maximum_of(f32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float maximum = x[0];
  for (int i = 1; i < kLanes; i++) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
#endif
}

inline uint32_t maximum_of(u32x16 x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epu32((__m512i)x);
#else
  uint32_t maximum = x[0];
  for (int i = 1; i < kLanes; i++) maximum = x[i] > maximum ? x[i] : maximum;
  return maximum;
#endif
}

// 2 to the power of x, to about one unit in the last place of a float; below -127 it is 0. Exactly 1 at 0.
// x = n + f with |f| <= 1/2; 2^f is its Taylor polynomial, n goes into the exponent.
inline f32x16 exp2(f32x16 x) {
  x = x < -127.0f ? splat(-127.0f) : x;
  x = x > 128.0f ? splat(128.0f) : x;
  const float shift = 12582912.0f;  // 1.5 * 2^23: adding it leaves no fraction
  f32x16 shifted = x + shift;
  f32x16 f = x - (shifted - shift);
  f32x16 p = 1.5403530e-4f * f + 1.3333558e-3f;
  p = p * f + 9.6181291e-3f;
  p = p * f + 5.5504109e-2f;
  p = p * f + 2.4022651e-1f;
  p = p * f + 6.9314718e-1f;
  p = p * f + 1.0f;
  i32x16 n = (i32x16)shifted - 0x4b400000;
  return p * (f32x16)((n + 127) << 23);
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

constexpr float kLog2E = 1.44269504f;

// sum + a.low * b.low + a.high * b.high in each lane; a is one pair of bfloat16, b sixteen.
inline f32x16 dot(f32x16 sum, uint32_t a, u32x16 b) {
#if defined(__AVX512BF16__)
  return (f32x16)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
#else
  u32x16 low = {a << 16}, high = {a & 0xffff0000};
  sum += splat(((f32x16)low)[0]) * (f32x16)(b << 16);
  return sum + splat(((f32x16)high)[0]) * (f32x16)(b & 0xffff0000);
#endif
}

inline f32x16 dot(f32x16 sum, float a, f32x16 b) { return sum + a * b; }

// sum + the four products of bytes in each lane; a is four signed bytes, b sixteen times four unsigned ones.
inline i32x16 dot(i32x16 sum, int32_t a, u32x16 b) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)b, _mm512_set1_epi32(a));
#elif defined(__AVX2__)
  i32x16 result;
  __m256i bytes = _mm256_set1_epi32(a);
  __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
  for (int half = 0; half < 2; half++) {
    __m256i quads = load<__m256i>((const char*)&b + 32 * half);
    __m256i part = load<__m256i>((const char*)&sum + 32 * half);
    part = _mm256_add_epi32(part, _mm256_madd_epi16(_mm256_and_si256(quads, _mm256_set1_epi16(255)), even));
    part = _mm256_add_epi32(part, _mm256_madd_epi16(_mm256_srli_epi16(quads, 8), odd));
    store((char*)&result + 32 * half, part);
  }
  return result;
#else
  for (int i = 0; i < 4; i++) sum += (int32_t)(int8_t)(a >> (8 * i)) * (i32x16)((b >> (8 * i)) & 255);
  return sum;
#endif
}

}  // namespace caravan

// Sums of products of bytes, and numbers that bytes stand for.
#pragma once

#include "vector.h"

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace caravan {

// Sums of products of unsigned bytes below 2^kBits with signed bytes, over at most eight quads; exact.
#if defined(__AVX512VNNI__)
constexpr bool kHasByteProducts = true;
template <int kBits>
struct ByteSums {
  i32x16 sums;
  void start(const i32x16& first) { sums = first; }
  void add(int32_t a, const u32x16& b) {
    sums = (i32x16)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)b, _mm512_set1_epi32(a));
  }
  i32x16 total() const { return sums; }
};
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr bool kHasByteProducts = false;
template <int kBits>
struct ByteSums {
  using Half = decltype(i32x16::low);
  // Quads whose products, 2 * 128 * (2^kBits - 1) for each 16 bits, can be added up in 16 bits; none of 8 bits.
  static constexpr int kQuadsAtOnce = 32767 / (2 * 128 * ((1 << kBits) - 1));
  i32x16 sums;
  __m256i low, high;
  int num_pending;

  void start(const i32x16& first) {
    sums = first;
    low = high = _mm256_setzero_si256();
    num_pending = 0;
  }
  void add(int32_t a, const u32x16& b) {
    const __m256i bytes = _mm256_set1_epi32(a);
    if constexpr (kQuadsAtOnce == 0) {
      const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
      auto dot = [&](Half sum, auto quads) {
        const __m256i evens = _mm256_and_si256((__m256i)quads, _mm256_set1_epi32(0x00ff00ff));
        const __m256i products = _mm256_add_epi32(_mm256_madd_epi16(evens, even),
                                                  _mm256_madd_epi16(_mm256_srli_epi16((__m256i)quads, 8), odd));
        return sum + (Half)products;
      };
      sums = {dot(sums.low, b.low), dot(sums.high, b.high)};
    } else {
      low = plus(low, _mm256_maddubs_epi16((__m256i)b.low, bytes));
      high = plus(high, _mm256_maddubs_epi16((__m256i)b.high, bytes));
      if (kQuadsAtOnce < 8 && ++num_pending == kQuadsAtOnce) start(total());
    }
  }
  // As the compiler's own addition it would add up products first and run out of registers for them, or copy each sum.
  static __m256i plus(__m256i sum, __m256i products) {
    asm("vpaddw %1, %0, %0" : "+x"(sum) : "x"(products));
    return sum;
  }
  i32x16 total() const {
    if constexpr (kQuadsAtOnce == 0) return sums;
    const __m256i ones = _mm256_set1_epi16(1);
    return {sums.low + (Half)_mm256_madd_epi16(low, ones), sums.high + (Half)_mm256_madd_epi16(high, ones)};
  }
};
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr bool kHasByteProducts = false;  // rows of int8 are multiplied in 16 bits here
template <int kBits>
struct ByteSums {
  i32x16 sums;
  void start(const i32x16& first) { sums = first; }
  void add(int32_t a, const u32x16& b) {
    const int8x16_t bytes = vreinterpretq_s8_s32(vdupq_n_s32(a));
    auto dot = [&](auto sum, auto quads) { return (decltype(sum))dot_of((int32x4_t)sum, (uint8x16_t)quads, bytes); };
    auto half = [&](auto sum, auto quads) {
      return decltype(sum){dot(sum.low, quads.low), dot(sum.high, quads.high)};
    };
    sums = {half(sums.low, b.low), half(sums.high, b.high)};
  }
  static int32x4_t dot_of(int32x4_t sum, uint8x16_t values, int8x16_t bytes) {
    if constexpr (kBits < 8) return vdotq_s32(sum, vreinterpretq_s8_u8(values), bytes);
    // b = (b - 128) + 64 + 64, each of which is a signed byte.
    const int8x16_t shifted = vreinterpretq_s8_u8(veorq_u8(values, vdupq_n_u8(128))), part = vdupq_n_s8(64);
    return vdotq_s32(vdotq_s32(vdotq_s32(sum, shifted, bytes), part, bytes), part, bytes);
  }
  i32x16 total() const { return sums; }
};
#else
constexpr bool kHasByteProducts = false;
template <int kBits>
struct ByteSums {
  i32x16 sums;
  void start(const i32x16& first) { sums = first; }
  void add(int32_t a, const u32x16& b) {
    for (int i = 0; i < 4; i++) sums += (int32_t)(int8_t)(a >> 8 * i) * (i32x16)((b >> 8 * i) & 255);
  }
  i32x16 total() const { return sums; }
};
#endif

// For each byte below 16 the byte of that place in a table of 16.
inline u32x16 look_up(const uint8_t (&table)[16], const u32x16& places) {
#if defined(__AVX512BW__)
  return (u32x16)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(load<__m128i>(table)), (__m512i)places);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i wide = _mm256_broadcastsi128_si256(load<__m128i>(table));
  using Half = decltype(u32x16::low);
  return {(Half)_mm256_shuffle_epi8(wide, (__m256i)places.low), (Half)_mm256_shuffle_epi8(wide, (__m256i)places.high)};
#elif defined(__aarch64__)
  const uint8x16_t bytes_of = load<uint8x16_t>(table);
  auto found = [&](auto quads) { return (decltype(quads))vqtbl1q_u8(bytes_of, (uint8x16_t)quads); };
  auto half = [&](auto quads) { return decltype(quads){found(quads.low), found(quads.high)}; };
  return {half(places.low), half(places.high)};
#else
  uint8_t bytes[64];
  store(bytes, places);
  for (uint8_t& byte : bytes) byte = table[byte];
  return load<u32x16>(bytes);
#endif
}

}  // namespace caravan

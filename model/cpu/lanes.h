// Sixteen numbers side by side: one of the compiler's own vectors where a register holds it, else two halves of them, so
// that each half has a register of its own. (A vector wider than every register would lie in memory, sums and all.)
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace caravan {

template <class E, int kBytes>
struct NativeVector {
  typedef E Type __attribute__((vector_size(kBytes)));
};
template <class E, int kBytes>
using Native = typename NativeVector<E, kBytes>::Type;

template <class V>
using ElementOf = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;

template <class V>
struct Halves {
  using Element = ElementOf<V>;
  static constexpr int kNumElements = 2 * sizeof(V) / sizeof(Element);
  V low, high;

  Halves() = default;
  Halves(V low, V high) : low(low), high(high) {}
  template <class W>
  explicit Halves(Halves<W> bits) : low((V)bits.low), high((V)bits.high) {}  // the same bits as other numbers

  Element operator[](int i) const { return i < kNumElements / 2 ? low[i] : high[i - kNumElements / 2]; }
};

template <class S>
concept Scalar = std::is_arithmetic_v<S>;

// A scalar stands for sixteen of it.
#define CARAVAN_OPERATOR(op)                                                                                       \
  template <class V>                                                                                               \
  inline auto operator op(const Halves<V>& a, const Halves<V>& b) {                                                \
    return Halves{a.low op b.low, a.high op b.high};                                                               \
  }                                                                                                                \
  template <class V, Scalar S>                                                                                     \
  inline auto operator op(const Halves<V>& a, S b) {                                                               \
    using E = typename Halves<V>::Element;                                                                         \
    return Halves{a.low op (E)b, a.high op (E)b};                                                                  \
  }                                                                                                                \
  template <class V, Scalar S>                                                                                     \
  inline auto operator op(S a, const Halves<V>& b) {                                                               \
    using E = typename Halves<V>::Element;                                                                         \
    return Halves{(E)a op b.low, (E)a op b.high};                                                                  \
  }
CARAVAN_OPERATOR(+)
CARAVAN_OPERATOR(-)
CARAVAN_OPERATOR(*)
CARAVAN_OPERATOR(/)
CARAVAN_OPERATOR(&)
CARAVAN_OPERATOR(|)
CARAVAN_OPERATOR(<<)
CARAVAN_OPERATOR(>>)
CARAVAN_OPERATOR(<)
CARAVAN_OPERATOR(>)
CARAVAN_OPERATOR(>=)
CARAVAN_OPERATOR(==)
#undef CARAVAN_OPERATOR

template <class V, class B>
inline Halves<V>& operator+=(Halves<V>& a, const B& b) {
  return a = a + b;
}
template <class V, class B>
inline Halves<V>& operator*=(Halves<V>& a, const B& b) {
  return a = a * b;
}

template <class V>
constexpr bool kIsHalves = false;
template <class V>
constexpr bool kIsHalves<Halves<V>> = true;

template <class V>
inline V load(const void* from) {
  if constexpr (kIsHalves<V>) {
    using Half = decltype(V::low);
    return {load<Half>(from), load<Half>((const char*)from + sizeof(Half))};
  } else {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
}

template <class V>
inline void store(void* to, const V& v) {
  if constexpr (kIsHalves<V>) {
    store(to, v.low);
    store((char*)to + sizeof v.low, v.high);
  } else {
    std::memcpy(to, &v, sizeof v);
  }
}

// a where the condition holds, else b.
template <class M, class V>
inline V select(const M& condition, const V& a, const V& b) {
  if constexpr (kIsHalves<V>)
    return {select(condition.low, a.low, b.low), select(condition.high, a.high, b.high)};
  else
    return condition ? a : b;
}

// The same numbers as another type.
template <class To, class V>
inline To convert(const V& x) {
  if constexpr (kIsHalves<V>) {
    using Half = decltype(To::low);
    return {convert<Half>(x.low), convert<Half>(x.high)};
  } else {
    return __builtin_convertvector(x, To);
  }
}

#if defined(__AVX512F__)
template <class E>
using Sixteen = Native<E, 16 * sizeof(E)>;
#elif defined(__AVX2__)
template <class E>
using Sixteen = Halves<Native<E, 8 * sizeof(E)>>;
#else
template <class E>
using Sixteen = Halves<Halves<Native<E, 4 * sizeof(E)>>>;
#endif

using f32x16 = Sixteen<float>;
using i32x16 = Sixteen<int32_t>;
using u32x16 = Sixteen<uint32_t>;
using u16x16 = Sixteen<uint16_t>;
using i8x16 = Sixteen<int8_t>;

}  // namespace caravan

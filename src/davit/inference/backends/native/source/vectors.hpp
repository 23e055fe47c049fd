// One vector of floats, as wide as the processor computes: AVX-512, AVX2, or four lanes elsewhere.
// Every number of channels in this engine is a multiple of 32, so that vectors over channels have no remainder.
#pragma once

#include <cstddef>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace davit {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

// Rows that a tile of a product holds in registers: 8 x 3 vectors of 32 registers, or 4 x 3 of 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 8;
#else
constexpr int TILE_ROWS = 4;
#endif

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int IntVec __attribute__((vector_size(LANES * sizeof(int))));
// The same bytes at any address of a float.
typedef float LooseVec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
inline void store(float* to, Vec x) { *reinterpret_cast<LooseVec*>(to) = x; }
// Holds a vector in a register. With AVX2, GCC would load it anew for each product that takes it, and a tile would wait for
// its loads: sixteen for twelve products, where processors load two vectors in the time of two products.
template <class Register>
inline void hold(Register& x) {
#if defined(__AVX__) && !defined(__AVX512F__)
  asm("" : "+x"(x));
#else
  (void)x;
#endif
}
// The same for all instructions.
template <class Register>
inline void pin(Register& x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#else
  hold(x);
#endif
}
inline void pin(const float*& x) { asm("" : "+r"(x)); }
inline Vec fill(float x) { return x - Vec{}; }  // minus zero keeps every x, so that compilers leave it out
inline IntVec fill(int x) { return x - IntVec{}; }

// These keep a NaN in `x`, whatever the bound: as do the instructions of x86, which give their second operand then. GCC
// makes a comparison and a choice of the plain form.
#if defined(__AVX512F__)
inline Vec at_least(Vec x, Vec bound) { return _mm512_max_ps(bound, x); }
inline Vec at_most(Vec x, Vec bound) { return _mm512_min_ps(bound, x); }
#elif defined(__AVX__)
inline Vec at_least(Vec x, Vec bound) { return _mm256_max_ps(bound, x); }
inline Vec at_most(Vec x, Vec bound) { return _mm256_min_ps(bound, x); }
#else
inline Vec at_least(Vec x, Vec bound) { return x < bound ? bound : x; }
inline Vec at_most(Vec x, Vec bound) { return x > bound ? bound : x; }
#endif

// Sums and products with one float in all lanes. With AVX-512 instructions take it from memory themselves; GCC would rather
// broadcast it to a register, which keeps an adder busy, and gather instructions of one kind.
#if defined(__AVX512F__) && !defined(__SANITIZE_ADDRESS__)
inline Vec plus(Vec x, const float* one) {
  Vec y;
  asm volatile("vaddps %2%{1to16%}, %1, %0" : "=v"(y) : "v"(x), "m"(*one));
  return y;
}
inline Vec minus(Vec x, const float* one) {
  Vec y;
  asm volatile("vsubps %2%{1to16%}, %1, %0" : "=v"(y) : "v"(x), "m"(*one));
  return y;
}
inline void add_product(Vec& sum, Vec x, const float* one) {
  asm volatile("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(x), "m"(*one));
}
inline void add_product(Vec& sum, Vec x, Vec y) { asm volatile("vfmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y)); }
inline void subtract_product(Vec& sum, Vec x, Vec y) {
  asm volatile("vfnmadd231ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
}
#else
inline Vec plus(Vec x, const float* one) { return x + fill(*one); }
inline Vec minus(Vec x, const float* one) { return x - fill(*one); }
inline void add_product(Vec& sum, Vec x, const float* one) { sum += x * fill(*one); }
inline void add_product(Vec& sum, Vec x, Vec y) { sum += x * y; }
inline void subtract_product(Vec& sum, Vec x, Vec y) { sum -= x * y; }
#endif

namespace detail {

template <int... I>
inline Vec pick(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, I...);
#else
  return __builtin_shuffle(a, b, IntVec{I...});
#endif
}

template <int FIRST, int... I>
inline Vec zip(Vec a, Vec b, std::integer_sequence<int, I...>) {
  return pick(a, b, std::integer_sequence<int, (FIRST + I / 2 + (I % 2) * LANES)...>{});
}

template <int BY, int... I>
inline Vec rotate(Vec x, std::integer_sequence<int, I...>) {
  return pick(x, x, std::integer_sequence<int, ((I + BY) % LANES)...>{});
}

template <int... I>
constexpr IntVec count_lanes(std::integer_sequence<int, I...>) {
  return IntVec{I...};
}

}  // namespace detail

using Lanes = std::make_integer_sequence<int, LANES>;

// The lanes of the lower halves of two vectors in turns, and of the upper halves.
inline Vec zip_low(Vec a, Vec b) { return detail::zip<0>(a, b, Lanes{}); }
inline Vec zip_high(Vec a, Vec b) { return detail::zip<LANES / 2>(a, b, Lanes{}); }

inline IntVec lane_numbers() { return detail::count_lanes(Lanes{}); }

template <int BY = LANES / 2>
inline float sum(Vec x) {
  if constexpr (BY == 0) {
    return x[0];
  } else {
    return sum<BY / 2>(x + detail::rotate<BY>(x, Lanes{}));
  }
}

template <int BY = LANES / 2>
inline float largest(Vec x) {
  if constexpr (BY == 0) {
    return x[0];
  } else {
    return largest<BY / 2>(at_least(x, detail::rotate<BY>(x, Lanes{})));
  }
}

// Rows and columns of a square of vectors change places: after each of log2(LANES) rounds of zipping the halves, half as
// many rows stand between neighbours.
inline void transpose(Vec (&rows)[LANES]) {
  for (int round = 1; round < LANES; round *= 2) {
    Vec zipped[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; ++i) {
      zipped[2 * i] = zip_low(rows[i], rows[i + LANES / 2]);
      zipped[2 * i + 1] = zip_high(rows[i], rows[i + LANES / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; ++i) rows[i] = zipped[i];
  }
}

}  // namespace davit

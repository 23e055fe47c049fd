// Products of whole numbers: eight bits times eight bits, summed in thirty-two without ever saturating.
//
// With VNNI one instruction adds up four products of unsigned and signed bytes in each lane. Weights are the unsigned
// ones, 128 too large, and what that adds to a sum is taken away again: 128 times the sum of the row's codes. Elsewhere
// codes are kept in sixteen bits and multiplied in pairs; the bytes' own instruction there (vpmaddubsw) saturates.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

#include "functions.hpp"

namespace davit {

#if defined(__AVX512F__) ? defined(__AVX512VNNI__) : defined(__AVXVNNI__)
#define DAVIT_BYTES 1
#else
#define DAVIT_BYTES 0
#endif

#if DAVIT_BYTES
using Code = int8_t;
using WeightCode = uint8_t;
constexpr int WEIGHT_ZERO = 128;
#else
using Code = int16_t;
using WeightCode = int16_t;
constexpr int WEIGHT_ZERO = 0;
#endif

constexpr int LARGEST_CODE = 127;
constexpr int GROUP = 4 / sizeof(Code);        // codes that meet in one lane
constexpr int MOST_CODED = (1 << 30) / 32768;  // inputs of a layer: more could pass the range of a sum

inline int round_to_groups(int inputs) { return (inputs + GROUP - 1) / GROUP * GROUP; }

inline IntVec load_ints(const void* from) {
  IntVec x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// One group of a row, in every lane.
inline IntVec fill_group(const Code* group) {
  int bits;
  std::memcpy(&bits, group, sizeof bits);
  return fill(bits);
}

// sums + the products of a group of codes with a group of weights, lane by lane.
inline IntVec dot(IntVec sums, IntVec codes, IntVec weights) {
#if DAVIT_BYTES && defined(__AVX512F__)
  return reinterpret_cast<IntVec>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sums), reinterpret_cast<__m512i>(weights),
                                                      reinterpret_cast<__m512i>(codes)));
#elif DAVIT_BYTES
  return reinterpret_cast<IntVec>(_mm256_dpbusd_avx_epi32(
      reinterpret_cast<__m256i>(sums), reinterpret_cast<__m256i>(weights), reinterpret_cast<__m256i>(codes)));
#elif defined(__AVX512BW__)
  return sums + reinterpret_cast<IntVec>(
                    _mm512_madd_epi16(reinterpret_cast<__m512i>(codes), reinterpret_cast<__m512i>(weights)));
#elif defined(__AVX2__) && !defined(__AVX512F__)
  return sums + reinterpret_cast<IntVec>(
                    _mm256_madd_epi16(reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(weights)));
#elif defined(__SSE2__) && !defined(__AVX__)
  return sums +
         reinterpret_cast<IntVec>(_mm_madd_epi16(reinterpret_cast<__m128i>(codes), reinterpret_cast<__m128i>(weights)));
#else
  return sums + (codes << 16 >> 16) * (weights << 16 >> 16) + (codes >> 16) * (weights >> 16);
#endif
}

inline Vec as_float_values(IntVec x) { return __builtin_convertvector(x, Vec); }

// The lower bits of each lane. GCC 12 would take the lanes out one by one.
inline void store_codes(Code* to, IntVec x) {
#if DAVIT_BYTES && defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x)));
#elif defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x)));
#elif DAVIT_BYTES
  const __m256i lowest = _mm256_set1_epi32(0x0c080400);  // the first byte of each lane, to the first lane of each half
  const __m256i halves = _mm256_shuffle_epi8(reinterpret_cast<__m256i>(x), lowest);
  const __m128i pair = _mm_unpacklo_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), pair);
#else
  typedef Code Codes __attribute__((vector_size(LANES * sizeof(Code))));
  const Codes codes = __builtin_convertvector(x, Codes);
  std::memcpy(to, &codes, sizeof codes);
#endif
}

}  // namespace davit

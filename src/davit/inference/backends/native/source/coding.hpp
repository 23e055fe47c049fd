// Activations to whole numbers, each row with its own scale: x = scale * code, codes between -127 and 127.
//
// A row with a NaN or an infinity has such a scale, so that whatever is computed from it is none either.
#pragma once

#include <cmath>

#include "integers.hpp"
#include "memory.hpp"
#include "norm.hpp"

namespace davit {

struct Coding {
  float scale;
  int start;  // of the sums over this row: what undoes the weights' zero
};

namespace detail {

// Magnitudes as whole numbers have their order, and NaN stands above all.
inline IntVec magnitudes(Vec x) { return as_ints(x) & fill(0x7fffffff); }

inline IntVec larger(IntVec a, IntVec b) { return a > b ? a : b; }

inline float largest_magnitude(IntVec tops) {
  int top = 0;
  for (int i = 0; i < LANES; ++i) top = tops[i] > top ? tops[i] : top;
  float x;
  std::memcpy(&x, &top, sizeof x);
  return x;
}

// Codes of `channels` values, each `factor` (x - middle); returns their sum. Values beyond whole vectors may be read: they
// come out as zeros.
inline int write_codes(const float* x, int channels, Vec middle, float factor, Code* codes) {
  const Vec magic = fill(12582912.0f);  // adding it rounds to a whole number, which then stands in the lowest bits
  const Vec factors = fill(factor);
  Vec total{};
  const int whole = channels / LANES * LANES;
  for (int c = 0; c < whole; c += LANES) {
    const Vec shifted = (load(x + c) - middle) * factors + magic;
    total += shifted - magic;
    store_codes(codes + c, as_ints(shifted));
  }
  if (whole < channels) {
    const Vec rest = lane_numbers() < fill(channels - whole) ? (load(x + whole) - middle) * factors : Vec{};
    const Vec shifted = rest + magic;
    total += shifted - magic;
    store_codes(codes + whole, as_ints(shifted));
  }
  // Sums of whole numbers below 2^24 are exact. A NaN has no whole number; its row's scale tells.
  const float all = sum(total);
  return std::fabs(all) < 16777216.0f ? static_cast<int>(all) : 0;
}

// With `largest` the largest of |x - middle| and x - middle to be scaled by `scale`.
inline Coding code(const float* x, int channels, Vec middle, float largest, float scale, Code* codes) {
  const float factor = largest > 1e-30f ? LARGEST_CODE / largest : 0.0f;  // zeros stay zeros
  const int total = write_codes(x, channels, middle, factor, codes);
  return {scale * (largest / LARGEST_CODE), -WEIGHT_ZERO * total};
}

}  // namespace detail

// Places for the codes of a row: whole vectors are written.
inline size_t code_width(int channels) { return static_cast<size_t>(divide_up(channels, LANES)) * LANES; }

// `x` has room for whole vectors, as all rows here have.
inline Coding code_row(const float* x, int channels, Code* codes) {
  IntVec tops{};
  const int whole = channels / LANES * LANES;
  for (int c = 0; c < whole; c += LANES) tops = detail::larger(detail::magnitudes(load(x + c)), tops);
  if (whole < channels) {
    const IntVec rest = detail::magnitudes(load(x + whole));
    tops = detail::larger(lane_numbers() < fill(channels - whole) ? rest : IntVec{}, tops);
  }
  return detail::code(x, channels, Vec{}, detail::largest_magnitude(tops), 1.0f, codes);
}

// GELU in place, as exact as codes are, and their codes.
inline Coding code_gelu(float* x, int channels, Code* codes) {
  IntVec tops{};
  const int whole = channels / LANES * LANES;
  for (int c = 0; c < whole; c += LANES) {
    const Vec y = coarse_gelu(load(x + c));
    store(x + c, y);
    tops = detail::larger(detail::magnitudes(y), tops);
  }
  if (whole < channels) {
    const Vec y = coarse_gelu(load(x + whole));
    store(x + whole, y);
    tops = detail::larger(lane_numbers() < fill(channels - whole) ? detail::magnitudes(y) : IntVec{}, tops);
  }
  return detail::code(x, channels, Vec{}, detail::largest_magnitude(tops), 1.0f, codes);
}

// Codes of a normed token, see `normalise`.
inline Coding code_normalised(const float* x, int channels, Code* codes) {
  Vec total{}, squares{};
  IntVec tops{};
  for (int c = 0; c < channels; c += LANES) total += load(x + c);
  const Vec mean = fill(sum(total) / static_cast<float>(channels));
  for (int c = 0; c < channels; c += LANES) {
    const Vec centred = load(x + c) - mean;
    squares += centred * centred;
    tops = detail::larger(detail::magnitudes(centred), tops);
  }
  const float scale = 1.0f / std::sqrt(sum(squares) / static_cast<float>(channels) + NORM_EPS);
  return detail::code(x, channels, mean, detail::largest_magnitude(tops), scale, codes);
}

}  // namespace davit

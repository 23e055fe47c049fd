// Self-attention between the 32 channels of a group: query^T key over all tokens, softmax, applied to the values.
#pragma once

#include <algorithm>
#include <limits>

#include "product.hpp"
#include "window_attention.hpp"

namespace davit {

constexpr int AFFINITY = HEAD * HEAD;

constexpr int SUMMED = 32;  // tokens added up before they join the sum of all: sums of sums keep more digits

namespace detail {

// to += left^T right over some tokens: ROWS channels of one by WIDTH vectors of the other.
template <int ROWS, int WIDTH>
void outer_tile(const float* left, const float* right, size_t stride, int tokens, float* to, size_t to_stride) {
  for (int begin = 0; begin < tokens; begin += SUMMED) {
    const int count = std::min(SUMMED, tokens - begin);
    Vec sums[ROWS][WIDTH] = {};
    for (int t = 0; t < count; ++t, left += stride, right += stride) {
      Vec vectors[WIDTH];
#pragma GCC unroll 3
      for (int j = 0; j < WIDTH; ++j) hold(vectors[j] = load(right + j * LANES));
#pragma GCC unroll 8
      for (int r = 0; r < ROWS; ++r) {
        const Vec one = fill(left[r]);
#pragma GCC unroll 3
        for (int j = 0; j < WIDTH; ++j) sums[r][j] += one * vectors[j];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 3
      for (int j = 0; j < WIDTH; ++j) {
        float* at = to + r * to_stride + j * LANES;
        store(at, load(at) + sums[r][j]);
      }
    }
  }
}

}  // namespace detail

// logits (32, 32) = query^T key over some tokens: rows of `stride` floats, 32 channels from each pointer on. It matters
// how they are summed: the logits grow with the tokens, and softmax takes their differences.
inline void channel_logits(const float* query, const float* key, size_t stride, int tokens, float* logits) {
  for (int i = 0; i < AFFINITY; i += LANES) store(logits + i, Vec{});
  for (int i = 0; i < HEAD; i += TILE_ROWS) {
    for (int j = 0; j < HEAD; j += 2 * LANES) {
      detail::outer_tile<TILE_ROWS, 2>(query + i, key + j, stride, tokens, logits + i * HEAD + j, HEAD);
    }
  }
}

// The softmaxed affinity of each channel to each of its group, transposed as `apply_affinity` takes it. The logits are
// the sum of `parts` partial ones, `apart` floats from each other, times `scale`.
inline void channel_affinity(const float* logits, int parts, size_t apart, float scale, float* affinity) {
  for (int i = 0; i < HEAD; ++i) {
    Vec row[HEAD_VECTORS] = {};
    Vec top = fill(-std::numeric_limits<float>::infinity());
    for (int j = 0; j < HEAD_VECTORS; ++j) {
      for (int p = 0; p < parts; ++p) row[j] += load(logits + p * apart + i * HEAD + j * LANES);
      row[j] *= fill(scale);
      top = at_least(row[j], top);
    }
    const Vec highest = fill(largest(top));
    Vec total{};
    for (Vec& x : row) total += x = exp_negative(x - highest);
    const Vec factor = fill(1.0f / sum(total));
    float weights[HEAD];
    for (int j = 0; j < HEAD_VECTORS; ++j) store(weights + j * LANES, row[j] * factor);
    for (int j = 0; j < HEAD; ++j) affinity[j * HEAD + i] = weights[j];
  }
}

// out = value affinity^T for some tokens of one group.
inline void apply_affinity(const float* value, size_t stride, const float* affinity, int tokens, float* out,
                           size_t out_stride) {
  for_tiles(tokens, [&](int first, int height) {
    const float* a[TILE_ROWS];
    float* c[TILE_ROWS];
    for (int j = 0; j < HEAD_VECTORS; j += 2) {
      for (int i = 0; i < height; ++i) {
        a[i] = value + (first + i) * stride;
        c[i] = out + (first + i) * out_stride + j * LANES;
      }
      choose_tile(height, 2)(a, affinity + j * LANES, HEAD, HEAD, nullptr, false, c, affinity);
    }
  });
}

}  // namespace davit

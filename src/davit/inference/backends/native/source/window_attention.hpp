// Self-attention between the tokens of one window, for one head of 32 channels.
//
// The reference pads a map to whole windows with zeros, after the norm and before query, key and value. So all padded
// tokens of a window have the same key and value, the projection's biases, and n of them weigh as much as one whose
// exponential counts n times. They need no rows here: they are one more key.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "memory.hpp"
#include "product.hpp"

namespace davit {

constexpr int HEAD = 32;  // channels of a head, and of a group of channel attention
constexpr int HEAD_VECTORS = HEAD / LANES;

// What an attention needs beside its inputs, for windows of up to `keys` tokens and one for the padding.
struct AttentionScratch {
  float* keys;    // transposed: panels of up to three vectors of keys, each (32, its keys)
  float* values;  // (keys, 32)
  float* scores;  // (TILE_ROWS, keys padded)

  AttentionScratch(Pieces& pieces, int tokens) {
    const size_t padded = round_up(tokens + 1, LANES);
    keys = pieces.floats(padded * HEAD);
    values = pieces.floats(padded * HEAD);
    scores = pieces.floats(padded * TILE_ROWS);
  }
};

// Queries, keys and values of a window: rows of `stride` floats, 32 channels from each pointer on.
struct WindowHead {
  const float* query;  // already scaled
  const float* key;
  const float* value;
  size_t stride;
  int tokens;
  int padded;  // tokens outside the map
  const float* padded_key;
  const float* padded_value;
};

namespace detail {

// Key after key becomes column after column; columns beyond the keys become zeros.
inline void transpose_keys(const WindowHead& window, const Linear& shape, float* packed) {
  const int keys = shape.outputs;
  for (int p = 0; p < shape.panels(); ++p) {
    const Panel panel = shape.panel(p);
    float* to = packed + static_cast<size_t>(panel.first) * LANES * HEAD;
    const size_t stride = static_cast<size_t>(panel.width) * LANES;
    for (int j = 0; j < panel.width; ++j) {
      const int first = (panel.first + j) * LANES;
      for (int c = 0; c < HEAD; c += LANES) {
        Vec square[LANES];
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) {
          const int key = first + i;
          square[i] = key < window.tokens ? load(window.key + key * window.stride + c)
                      : key < keys        ? load(window.padded_key + c)
                                          : Vec{};
        }
        transpose(square);
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) store(to + (c + i) * stride + j * LANES, square[i]);
      }
    }
  }
}

// Exponentials in the place of one row of logits; returns one over their sum.
inline float exponentials(float* row, int keys, int padded) {
  const int whole = keys / LANES * LANES;
  Vec top = fill(-std::numeric_limits<float>::infinity());
  if (whole < keys) {  // columns beyond the keys
    const IntVec lanes = lane_numbers();
    const Vec rest = lanes < fill(keys - whole) ? load(row + whole) : top;
    store(row + whole, rest);
    top = rest;
  }
  for (int j = 0; j < whole; j += LANES) top = at_least(load(row + j), top);
  const Vec highest = fill(largest(top));
  Vec total{};
  for (int j = 0; j < keys; j += LANES) {
    const Vec e = exp_negative(load(row + j) - highest);
    store(row + j, e);
    total += e;
  }
  float all = sum(total);
  if (padded > 0) {
    const float e = row[keys - 1];
    row[keys - 1] = e * static_cast<float>(padded);
    all += e * static_cast<float>(padded - 1);
  }
  return 1.0f / all;
}

}  // namespace detail

// What the tokens attend to: 32 channels for each, rows of `out_stride` floats from `out` on.
inline void attend_window(const WindowHead& window, const AttentionScratch& scratch, float* out, size_t out_stride) {
  Linear shape;  // only its cut into panels: the keys are the outputs of a layer of 32 inputs
  shape.inputs = HEAD;
  shape.outputs = window.tokens + (window.padded > 0);
  shape.vectors = divide_up(shape.outputs, LANES);
  const int keys = shape.outputs;
  const size_t width = static_cast<size_t>(shape.vectors) * LANES;
  detail::transpose_keys(window, shape, scratch.keys);
  for (int key = 0; key < keys; ++key) {
    const float* value = key < window.tokens ? window.value + key * window.stride : window.padded_value;
    for (int c = 0; c < HEAD; c += LANES) store(scratch.values + key * HEAD + c, load(value + c));
  }
  shape.weights = scratch.keys;
  for_tiles(window.tokens, [&](int first, int height) {
    const float* queries[TILE_ROWS];
    const float* weights[TILE_ROWS];
    float* to[TILE_ROWS];
    float factors[TILE_ROWS];
    for (int i = 0; i < height; ++i) queries[i] = window.query + (first + i) * window.stride;
    for (int p = 0; p < shape.panels(); ++p) {
      const Panel panel = shape.panel(p);
      for (int i = 0; i < height; ++i) to[i] = scratch.scores + i * width + panel.first * LANES;
      const float* packed = shape.at(panel, 0);
      choose_tile(height, panel.width)(queries, packed, static_cast<size_t>(panel.width) * LANES, HEAD, nullptr, false,
                                       to, packed);
    }
    for (int i = 0; i < height; ++i) {
      factors[i] = detail::exponentials(scratch.scores + i * width, keys, window.padded);
      weights[i] = scratch.scores + i * width;
    }
    for (int j = 0; j < HEAD_VECTORS; j += 2) {
      for (int i = 0; i < height; ++i) to[i] = out + (first + i) * out_stride + j * LANES;
      choose_tile(height, 2)(weights, scratch.values + j * LANES, HEAD, keys, nullptr, false, to, scratch.values);
    }
    for (int i = 0; i < height; ++i) {
      float* row = out + (first + i) * out_stride;
      for (int c = 0; c < HEAD; c += LANES) store(row + c, load(row + c) * fill(factors[i]));
    }
  });
}

}  // namespace davit

// The 3x3 depth-wise convolution on the residual stream, which tells tokens where they are.
#pragma once

#include <algorithm>
#include <cstring>

#include "vectors.hpp"

namespace davit {

// Tokens of B images, (B, H, W, C).
struct Map {
  int batch;
  int height;
  int width;
  int channels;
  size_t area() const { return static_cast<size_t>(height) * width; }
  size_t tokens() const { return batch * area(); }
  size_t floats() const { return tokens() * channels; }
};

// Weights (3, 3, C), one added to the centre tap for the residual, and bias (C). Without weights the map passes as it is.
struct Position {
  const float* weights = nullptr;
  const float* bias = nullptr;
};

namespace detail {

// The three taps of one column of the kernel, for three rows of the map.
struct Column {
  Vec above, here, below;
  Vec onto(Vec sum, Column taps) const {
    return sum + above * taps.above + here * taps.here + below * taps.below;
  }
};

}  // namespace detail

// Columns [begin, end) of row y of one image, whose map starts at `image`: C channels each to `out`.
inline void convolve_row(const float* image, const Map& map, Position position, int y, int begin, int end, float* out) {
  const int C = map.channels, W = map.width;
  const float* here = image + static_cast<size_t>(y) * W * C;
  if (!position.weights) {
    std::memcpy(out, here + static_cast<size_t>(begin) * C, static_cast<size_t>(end - begin) * C * sizeof(float));
    return;
  }
  // Rows outside the image are zeros: any row will do under taps of zero.
  const bool top = y > 0, bottom = y + 1 < map.height;
  const float* above = top ? here - static_cast<size_t>(W) * C : here;
  const float* below = bottom ? here + static_cast<size_t>(W) * C : here;
  for (int c = 0; c < C; c += LANES) {
    const auto taps = [&](int x) {
      const float* w = position.weights + static_cast<size_t>(x) * C + c;
      const size_t row = static_cast<size_t>(3) * C;
      return detail::Column{top ? load(w) : Vec{}, load(w + row), bottom ? load(w + 2 * row) : Vec{}};
    };
    const detail::Column left = taps(0), middle = taps(1), right = taps(2);
    const auto column = [&](int x) {
      const size_t at = static_cast<size_t>(x) * C + c;
      return detail::Column{load(above + at), load(here + at), load(below + at)};
    };
    const Vec bias = load(position.bias + c);
    // Each column of the map is read once: it ends the sum of the token before it, and enters two more.
    detail::Column now = column(begin);
    Vec current = begin > 0 ? column(begin - 1).onto(bias, left) : bias;
    current = now.onto(current, middle);
    Vec next = now.onto(bias, left);
    float* to = out + c;
    const int inner = std::min(end, W - 1);
    for (int x = begin; x < inner; ++x, to += C) {
      now = column(x + 1);
      store(to, now.onto(current, right));
      current = now.onto(next, middle);
      next = now.onto(bias, left);
    }
    if (inner < end) store(to, current);
  }
}

}  // namespace davit

// How a map is cut into windows, and into strips that one thread computes.
#pragma once

#include <algorithm>

#include "activations.hpp"
#include "position.hpp"

namespace davit {

// Windows of side x side tokens, counted row by row, image after image; those at the right and bottom may reach over the
// edge. Tokens are counted window after window, only those inside the map.
struct Windows {
  Map map;
  int side;

  int rows() const { return divide_up(map.height, side); }
  int columns() const { return divide_up(map.width, side); }
  int count() const { return map.batch * rows() * columns(); }
  int image(int window) const { return window / (rows() * columns()); }
  int row(int window) const { return window / columns() % rows(); }
  int column(int window) const { return window % columns(); }
  int height(int window) const { return std::min(side, map.height - row(window) * side); }
  int width(int window) const { return std::min(side, map.width - column(window) * side); }
  int tokens(int window) const { return height(window) * width(window); }
  int padded(int window) const { return side * side - tokens(window); }
  // The tokens of all windows before this one.
  size_t before(int window) const {
    if (window == count()) return map.tokens();
    return image(window) * map.area() + static_cast<size_t>(row(window)) * side * map.width +
           static_cast<size_t>(height(window)) * column(window) * side;
  }
};

// Position encoding and norm of the tokens of windows [begin, end): the residual stream goes from `in` to `out`, maps
// both; the normed tokens to `y`, window after window, as `layer` wants them; and `places` gets where in `out` each
// token lies.
inline void gather_windows(const float* in, const Windows& windows, Position position, int begin, int end, float* out,
                           const Linear& layer, const Activations& y, float** places) {
  const Map& map = windows.map;
  const int C = map.channels, side = windows.side;
  size_t taken = 0;
  for (int window = begin; window < end;) {
    const int column = windows.column(window), height = windows.height(window), top = windows.row(window) * side;
    const int run = std::min(end - window, windows.columns() - column);  // neighbours in one row of windows
    const int left = column * side, right = std::min(map.width, left + run * side);
    const size_t image = windows.image(window) * map.area() * C;
    for (int r = 0; r < height; ++r) {
      float* row = out + image + (static_cast<size_t>(top + r) * map.width + left) * C;
      convolve_row(in + image, map, position, top + r, left, right, row);
      for (int x = left; x < right; x += side) {
        const int width = std::min(side, right - x);
        const size_t first = static_cast<size_t>(x - left) * height + static_cast<size_t>(r) * width;
        for (int i = 0; i < width; ++i, row += C) {
          places[first + i] = row;
          y.norm(layer, row, taken + first + i);
        }
      }
    }
    const size_t tokens = static_cast<size_t>(height) * (right - left);
    places += tokens;
    taken += tokens;
    window += run;
  }
}

// The same for rows [begin, end) of the maps, counted over all images; the order of the tokens stays.
inline void gather_rows(const float* in, const Map& map, Position position, int begin, int end, float* out,
                        const Linear& layer, const Activations& y) {
  const int C = map.channels;
  size_t taken = 0;
  for (int row = begin; row < end; ++row) {
    const size_t image = row / map.height * map.area() * C;
    float* to = out + static_cast<size_t>(row) * map.width * C;
    convolve_row(in + image, map, position, row % map.height, 0, map.width, to);
    for (int x = 0; x < map.width; ++x, to += C) y.norm(layer, to, taken++);
  }
}

// Items cut into `count` strips of `size`, the last one perhaps shorter.
struct Cut {
  int items;
  int size;
  int count;
  int begin(int strip) const { return strip * size; }
  int end(int strip) const { return std::min(items, (strip + 1) * size); }
};

// Strips of at most `most` items; where there are few strips, as many for each thread.
inline Cut cut(int items, int most, int threads) {
  int count = divide_up(items, std::max(1, most));
  if (count < 8 * threads) count = std::min(items, divide_up(count, threads) * threads);
  const int size = divide_up(items, count);
  return {items, size, divide_up(items, size)};
}

}  // namespace davit

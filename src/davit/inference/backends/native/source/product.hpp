// Matrix products: tiles of rows x vectors that stay in registers, and the loops around them.
#pragma once

#include <algorithm>

#include "functions.hpp"
#include "linear.hpp"
#include "vectors.hpp"

namespace davit {

// c[i] = a[i] B + bias for ROWS rows of WIDTH vectors, or += with `add`; the rows lie anywhere. B is `depth` x WIDTH
// vectors, `stride` floats from row to row. `ahead` is memory that will be wanted soon: a line of it is fetched per step.
template <int ROWS, int WIDTH>
void tile(const float* const* a, const float* b, size_t stride, int depth, const float* bias, bool add, float* const* c,
          const float* ahead) {
  const float* row[ROWS];
  Vec sums[ROWS][WIDTH];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    row[i] = a[i];
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) sums[i][j] = bias ? load(bias + j * LANES) : Vec{};
  }
  for (int k = 0; k < depth; ++k) {
    Vec right[WIDTH];
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) hold(right[j] = load(b + j * LANES));
    __builtin_prefetch(ahead + static_cast<size_t>(k) * (LINE / sizeof(float)), 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const Vec left = fill(row[i][k]);
#pragma GCC unroll 3
      for (int j = 0; j < WIDTH; ++j) sums[i][j] += left * right[j];
    }
    b += stride;
  }
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) {
      float* to = c[i] + j * LANES;
      store(to, add ? sums[i][j] + load(to) : sums[i][j]);
    }
  }
}

using Tile = void (*)(const float* const*, const float*, size_t, int, const float*, bool, float* const*, const float*);

template <int WIDTH>
inline Tile choose_tile(int rows) {
  static constexpr Tile TILES[] = {
      tile<1, WIDTH>, tile<2, WIDTH>, tile<3, WIDTH>, tile<4, WIDTH>,
#if defined(__AVX512F__) || defined(__aarch64__)
      tile<5, WIDTH>, tile<6, WIDTH>, tile<7, WIDTH>, tile<8, WIDTH>,
#endif
  };
  return TILES[rows - 1];
}

inline Tile choose_tile(int rows, int width) {
  return width == 3 ? choose_tile<3>(rows) : width == 2 ? choose_tile<2>(rows) : choose_tile<1>(rows);
}

// `rows` cut into tiles of nearly equal height; seven rows of seven for 49, rather than six of eight and a last one.
template <class Visit>
inline void for_tiles(int rows, Visit visit) {
  const int tiles = divide_up(rows, TILE_ROWS);
  for (int i = 0, first = 0; i < tiles; ++i) {
    const int height = rows / tiles + (i < rows % tiles);
    visit(first, height);
    first += height;
  }
}

struct Range {
  int begin;
  int end;
};

inline Range all_panels(const Linear& linear) { return {0, linear.panels()}; }
inline Range all_inputs(const Linear& linear) { return {0, linear.inputs}; }

// Rows `stride` floats apart.
struct Rows {
  float* first;
  size_t stride;
  float* operator()(int row) const { return first + row * stride; }
};
struct ConstRows {
  const float* first;
  size_t stride;
  const float* operator()(int row) const { return first + row * stride; }
};

enum class Finish { set, add, gelu };

// Rows of outputs from rows of inputs, for some panels and some inputs of a layer.
// `in(row)` points to the first of those inputs, `out(row)` to the first output of the first panel. The bias comes with
// the layer's first input.
template <class In, class Out>
void multiply(const Linear& linear, Range panels, Range inputs, In in, int rows, Finish finish, Out out) {
  const int origin = linear.column(panels.begin);
  for (int p = panels.begin; p < panels.end; ++p) {
    const Panel panel = linear.panel(p);
    const int column = panel.first * LANES - origin;
    for (int k = inputs.begin; k < inputs.end; k += DEPTH_BLOCK) {
      const int depth = std::min(DEPTH_BLOCK, inputs.end - k);
      const bool last = k + depth == inputs.end;
      const float* weights = linear.at(panel, k);
      const float* next = last && p + 1 < panels.end ? linear.at(linear.panel(p + 1), inputs.begin)
                                                     : weights + static_cast<size_t>(depth) * panel.width * LANES;
      int part = 0;
      for_tiles(rows, [&](int first, int height) {
        const float* a[TILE_ROWS];
        float* c[TILE_ROWS];
        for (int i = 0; i < height; ++i) {
          a[i] = in(first + i) + (k - inputs.begin);
          c[i] = out(first + i) + column;
        }
        choose_tile(height, panel.width)(a, weights, static_cast<size_t>(panel.width) * LANES, depth,
                                         k == 0 && linear.bias ? linear.bias + panel.first * LANES : nullptr,
                                         k > inputs.begin || finish == Finish::add, c,
                                         next + static_cast<size_t>(part) * depth * (LINE / sizeof(float)));
        part = part < 2 ? part + 1 : 0;  // the first tiles of a panel fetch the next one between them
        if (finish == Finish::gelu && last) {
          for (int i = 0; i < height; ++i) {
            for (int j = 0; j < panel.width; ++j) store(c[i] + j * LANES, gelu(load(c[i] + j * LANES)));
          }
        }
      });
    }
  }
}

}  // namespace davit

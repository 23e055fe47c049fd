// The matrix products of layers in int8: see `product.hpp`.
#pragma once

#include "coding.hpp"
#include "product.hpp"

namespace davit {

// A row of codes as a tile takes it.
struct CodedRow {
  const Code* codes;
  Coding coding;
};

// What becomes of a tile's sums: times the row's scale and the output's, and a bias; added to what is there, or not.
struct Ending {
  const float* scales;
  const float* bias;  // or null
  bool add;
};

// ROWS rows of WIDTH vectors from `groups` groups of inputs. The sums are exact, in any order and on any processor.
template <int ROWS, int WIDTH>
void coded_tile(const CodedRow* rows, const WeightCode* b, int groups, const Ending& ending, float* const* c,
                const WeightCode* ahead) {
  const Code* row[ROWS];
  IntVec sums[ROWS][WIDTH];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    row[i] = rows[i].codes;
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) sums[i][j] = fill(rows[i].coding.start);
  }
  for (int k = 0; k < groups; ++k) {
    IntVec right[WIDTH];
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) {
      right[j] = load_ints(b + j * LANES * GROUP);
      if (j < 2) hold(right[j]);  // for a third there is no register: products need one between them and their sum
    }
    __builtin_prefetch(ahead + static_cast<size_t>(k) * (LINE / sizeof(WeightCode)), 0, 2);
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      const IntVec left = fill_group(row[i] + k * GROUP);
#pragma GCC unroll 3
      for (int j = 0; j < WIDTH; ++j) sums[i][j] = dot(sums[i][j], left, right[j]);
    }
    b += WIDTH * LANES * GROUP;
  }
#pragma GCC unroll 3
  for (int j = 0; j < WIDTH; ++j) {
    const Vec scales = load(ending.scales + j * LANES);
    const Vec bias = ending.bias ? load(ending.bias + j * LANES) : Vec{};
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      float* to = c[i] + j * LANES;
      const Vec before = ending.add ? load(to) + bias : bias;
      store(to, as_float_values(sums[i][j]) * (scales * fill(rows[i].coding.scale)) + before);
    }
  }
}

using CodedTile = void (*)(const CodedRow*, const WeightCode*, int, const Ending&, float* const*, const WeightCode*);

template <int WIDTH>
inline CodedTile choose_coded_tile(int rows) {
  static constexpr CodedTile TILES[] = {
      coded_tile<1, WIDTH>, coded_tile<2, WIDTH>, coded_tile<3, WIDTH>, coded_tile<4, WIDTH>,
#if defined(__AVX512F__) || defined(__aarch64__)
      coded_tile<5, WIDTH>, coded_tile<6, WIDTH>, coded_tile<7, WIDTH>, coded_tile<8, WIDTH>,
#endif
  };
  return TILES[rows - 1];
}

inline CodedTile choose_coded_tile(int rows, int width) {
  return width == 3   ? choose_coded_tile<3>(rows)
         : width == 2 ? choose_coded_tile<2>(rows)
                      : choose_coded_tile<1>(rows);
}

// As `multiply`; `in(row)` is a `CodedRow` of the first of the inputs, which begin with a group.
template <class In, class Out>
void multiply_codes(const Linear& linear, Range panels, Range inputs, In in, int rows, Finish finish, Out out) {
  const int origin = linear.column(panels.begin), groups = round_to_groups(inputs.end - inputs.begin) / GROUP;
  for (int p = panels.begin; p < panels.end; ++p) {
    const Panel panel = linear.panel(p);
    const int column = panel.first * LANES;
    const WeightCode* codes = linear.codes_at(panel, inputs.begin);
    const WeightCode* next = p + 1 < panels.end ? linear.codes_at(linear.panel(p + 1), inputs.begin) : codes;
    const Ending ending{linear.scales + column, inputs.begin == 0 ? linear.bias + column : nullptr,
                        finish == Finish::add};
    int part = 0;
    for_tiles(rows, [&](int first, int height) {
      CodedRow a[TILE_ROWS];
      float* c[TILE_ROWS];
      for (int i = 0; i < height; ++i) {
        a[i] = in(first + i);
        c[i] = out(first + i) + (column - origin);
      }
      choose_coded_tile(height, panel.width)(
          a, codes, groups, ending, c, next + static_cast<size_t>(part) * groups * (LINE / sizeof(WeightCode)));
      part = part < 2 ? part + 1 : 0;
      if (finish == Finish::gelu) {
        for (int i = 0; i < height; ++i) {
          for (int j = 0; j < panel.width; ++j) store(c[i] + j * LANES, gelu(load(c[i] + j * LANES)));
        }
      }
    });
  }
}

}  // namespace davit

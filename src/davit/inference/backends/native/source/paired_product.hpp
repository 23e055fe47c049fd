// Matrix products that take the inputs two by two, for processors that add beside their multiplications: Winograd 1968,
// "A New Algorithm for Inner Product".
//
// a0 b0 + a1 b1 = (a0 + b1)(a1 + b0) - a0 a1 - b0 b1: two additions and one multiply-add for two multiply-adds. The last
// two terms are the row's and the output's alone and summed up before. AMD's processors have units for additions beside
// those for multiply-adds; a tile that computes two thirds of its outputs so keeps both busy, and does three products in
// the time of two.
//
// Digits: what is summed up before is as large as the factors' squares, so that both are scaled to a mean square near one,
// by powers of two: weights along their inputs and outputs, rows by what the inputs' scales leave. Every other pair is
// taken as -(b1 - a0)(b0 - a1) + a0 a1 + b0 b1, for GELU's outputs are mostly of one sign and their products would add up.
#pragma once

#include "linear.hpp"
#include "product.hpp"

namespace davit {

namespace detail {

template <int... I>
inline Vec swap_neighbours(Vec x, std::integer_sequence<int, I...>) {
  return pick(x, x, std::integer_sequence<int, (I ^ 1)...>{});
}

template <int... I>
constexpr Vec pair_signs(std::integer_sequence<int, I...>) {  // halves, for each product comes twice
  return Vec{(I & 2 ? -0.5f : 0.5f)...};
}

}  // namespace detail

// Of a panel so many vectors wide, how many are computed in pairs: adders and multipliers then have about as much to do.
constexpr int paired_vectors(int width) { return width - 1; }

// How many numbers go with a row of so many inputs: its scale, then the sum of its pairs' products in each block.
inline size_t pairing_width(int inputs) { return 1 + divide_up(inputs, PAIRED_BLOCK); }

// Multiplies a row by the scales of its inputs, divides it by its own, and gives what goes with it. Where all is zero, so
// is the scale.
inline void pair_row(float* row, int inputs, const float* input_scales, float* pairing) {
  const Vec signs = detail::pair_signs(Lanes{});
  const int blocks = divide_up(inputs, PAIRED_BLOCK);
  Vec squares{};
  for (int b = 0; b < blocks; ++b) {
    Vec products{};
    for (int k = b * PAIRED_BLOCK; k < std::min(inputs, (b + 1) * PAIRED_BLOCK); k += LANES) {
      const Vec x = load(row + k) * load(input_scales + k);
      squares += x * x;
      products += x * detail::swap_neighbours(x, Lanes{}) * signs;
    }
    pairing[1 + b] = sum(products);
  }
  const float scale = pairing[0] = power_of_two(sum(squares) / static_cast<float>(inputs));
  const float factor = scale == 0.0f ? 1.0f : 1.0f / scale;
  for (int k = 0; k < inputs; k += LANES) store(row + k, load(row + k) * load(input_scales + k) * fill(factor));
  for (int b = 0; b < blocks; ++b) pairing[1 + b] *= factor * factor;
}

// A row as a tile takes it.
struct PairedRow {
  const float* values;
  float scale;
  float sum;  // of its pairs' products
};

// What becomes of a tile's sums, and with which numbers of the outputs they start.
struct PairedEnding {
  const float* starts;
  const float* scales;
  const float* bias;  // or null
  bool add;
};

// ROWS rows of WIDTH vectors from `depth` inputs, a multiple of four.
template <int ROWS, int WIDTH>
void paired_tile(const PairedRow* rows, const float* b, int depth, const PairedEnding& ending, float* const* c,
                 const float* ahead) {
  constexpr int PAIRED = paired_vectors(WIDTH);
  constexpr size_t STRIDE = WIDTH * LANES;
  const float* row[ROWS];
  Vec sums[ROWS][WIDTH];
#pragma GCC unroll 8
  for (int i = 0; i < ROWS; ++i) {
    row[i] = rows[i].values;
#pragma GCC unroll 3
    for (int j = 0; j < WIDTH; ++j) {
      sums[i][j] = j < PAIRED ? load(ending.starts + j * LANES) - fill(rows[i].sum) : Vec{};
    }
  }
  for (int k = 0; k < depth; k += 4) {
#pragma GCC unroll 2
    for (int h = 0; h < 4; h += 2) {
      Vec right[2][WIDTH];
#pragma GCC unroll 3
      for (int j = 0; j < WIDTH; ++j) {
        pin(right[0][j] = load(b + j * LANES));
        pin(right[1][j] = load(b + STRIDE + j * LANES));
      }
      b += 2 * STRIDE;
      __builtin_prefetch(ahead, 0, 2);
      __builtin_prefetch(ahead + LINE / sizeof(float), 0, 2);
      ahead += 2 * LINE / sizeof(float);
#pragma GCC unroll 8
      for (int i = 0; i < ROWS; ++i) {
        const float* left = row[i] + h;
#pragma GCC unroll 3
        for (int j = 0; j < WIDTH; ++j) {
          if (j >= PAIRED) {
            add_product(sums[i][j], right[0][j], left);
            add_product(sums[i][j], right[1][j], left + 1);
          } else if (h == 0) {
            add_product(sums[i][j], plus(right[1][j], left), plus(right[0][j], left + 1));
          } else {
            subtract_product(sums[i][j], minus(right[1][j], left), minus(right[0][j], left + 1));
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) pin(row[i] += 4);
  }
#pragma GCC unroll 3
  for (int j = 0; j < WIDTH; ++j) {
    const Vec scales = load(ending.scales + j * LANES);
    const Vec bias = ending.bias ? load(ending.bias + j * LANES) : Vec{};
#pragma GCC unroll 8
    for (int i = 0; i < ROWS; ++i) {
      float* to = c[i] + j * LANES;
      const Vec before = ending.add ? load(to) + bias : bias;
      store(to, sums[i][j] * (scales * fill(rows[i].scale)) + before);
    }
  }
}

using PairedTile = void (*)(const PairedRow*, const float*, int, const PairedEnding&, float* const*, const float*);

template <int WIDTH>
inline PairedTile choose_paired_tile(int rows) {
  static constexpr PairedTile TILES[] = {
      paired_tile<1, WIDTH>, paired_tile<2, WIDTH>, paired_tile<3, WIDTH>, paired_tile<4, WIDTH>,
#if defined(__AVX512F__) || defined(__aarch64__)
      paired_tile<5, WIDTH>, paired_tile<6, WIDTH>, paired_tile<7, WIDTH>, paired_tile<8, WIDTH>,
#endif
  };
  return TILES[rows - 1];
}

inline PairedTile choose_paired_tile(int rows, int width) {
  return width == 3   ? choose_paired_tile<3>(rows)
         : width == 2 ? choose_paired_tile<2>(rows)
                      : choose_paired_tile<1>(rows);
}

// As `multiply`, for a layer packed in pairs; `in(row)` points to the first of those inputs and `pairing(row)` to what
// goes with them. The inputs begin with a block.
template <class In, class Pairing, class Out>
void multiply_pairs(const Linear& linear, Range panels, Range inputs, In in, Pairing pairing, int rows, Finish finish,
                    Out out) {
  const int origin = linear.column(panels.begin);
  for (int p = panels.begin; p < panels.end; ++p) {
    const Panel panel = linear.panel(p);
    const int column = panel.first * LANES;
    for (int k = inputs.begin; k < inputs.end; k += PAIRED_BLOCK) {
      const int depth = std::min(PAIRED_BLOCK, inputs.end - k), block = (k - inputs.begin) / PAIRED_BLOCK;
      const bool last = k + depth == inputs.end;
      const float* weights = linear.at(panel, k);
      const float* next = last && p + 1 < panels.end ? linear.at(linear.panel(p + 1), inputs.begin)
                                                     : weights + static_cast<size_t>(depth) * panel.width * LANES;
      const PairedEnding ending{linear.starts_at(panel, k), linear.scales + column, k == 0 ? linear.bias + column : nullptr,
                                k > inputs.begin || finish == Finish::add};
      int part = 0;
      for_tiles(rows, [&](int first, int height) {
        PairedRow a[TILE_ROWS];
        float* c[TILE_ROWS];
        for (int i = 0; i < height; ++i) {
          const float* numbers = pairing(first + i);
          a[i] = {in(first + i) + (k - inputs.begin), numbers[0], numbers[1 + block]};
          c[i] = out(first + i) + (column - origin);
        }
        choose_paired_tile(height, panel.width)(a, weights, depth, ending, c,
                                                next + static_cast<size_t>(part) * depth * (LINE / sizeof(float)));
        part = part < 2 ? part + 1 : 0;
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

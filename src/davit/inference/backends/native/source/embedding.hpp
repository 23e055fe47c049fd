// Images to tokens, and four (or nine) tokens to one: the strided convolutions, as products over gathered rows.
#pragma once

#include <cstring>

#include "activations.hpp"
#include "position.hpp"

namespace davit {

constexpr int PATCH = 7;
constexpr int PATCH_STRIDE = 4;
constexpr int PATCH_PADDING = 3;

// Images (B, channels, height, width).
struct Images {
  const float* pixels;
  int batch;
  int channels;
  int height;
  int width;
};

// The pixels under one token, (channels, 7, 7), zeros outside the image.
inline void gather_patch(const Images& images, int image, int y, int x, float* to) {
  const int top = PATCH_STRIDE * y - PATCH_PADDING, left = PATCH_STRIDE * x - PATCH_PADDING;
  const bool inside = left >= 0 && left + PATCH <= images.width;
  for (int c = 0; c < images.channels; ++c) {
    const float* plane =
        images.pixels + (static_cast<size_t>(image) * images.channels + c) * images.height * images.width;
    for (int row = top; row < top + PATCH; ++row, to += PATCH) {
      if (row < 0 || row >= images.height) {
        std::memset(to, 0, PATCH * sizeof(float));
        continue;
      }
      const float* from = plane + static_cast<size_t>(row) * images.width;
      if (inside) {
        std::memcpy(to, from + left, PATCH * sizeof(float));
        continue;
      }
      for (int i = 0; i < PATCH; ++i) to[i] = left + i >= 0 && left + i < images.width ? from[left + i] : 0.0f;
    }
  }
}

// Tokens [begin, end) of all images' first map: convolution and norm. `patches` holds (end - begin, channels * 49).
inline void embed(const Images& images, const Map& map, const Linear& convolution, Norm norm, size_t begin, size_t end,
                  float* patches, float* out) {
  const int rows = static_cast<int>(end - begin), C = map.channels;
  for (int i = 0; i < rows; ++i) {
    const size_t token = begin + i, within = token % map.area();
    gather_patch(images, static_cast<int>(token / map.area()), static_cast<int>(within / map.width),
                 static_cast<int>(within % map.width), patches + static_cast<size_t>(i) * convolution.inputs);
  }
  float* first = out + begin * C;
  multiply(convolution, all_panels(convolution), all_inputs(convolution),
           ConstRows{patches, static_cast<size_t>(convolution.inputs)}, rows, Finish::set,
           Rows{first, static_cast<size_t>(C)});
  for (int i = 0; i < rows; ++i) normalise(first + static_cast<size_t>(i) * C, C, norm, first + static_cast<size_t>(i) * C);
}

// The stride-2 convolution between stages: a kernel of 2x2, or of 3x3 with a padding of one.
struct Merge {
  int kernel = 2;
  Norm norm;
  Linear convolution;  // inputs in the order row, column, channel of the kernel

  int before() const { return kernel - 2; }  // rows and columns of padding at the top and left
  // Of the normed map with its padding, as far as the kernel reaches.
  Map padded(const Map& from) const {
    return {from.batch, 2 * divide_up(from.height, 2) + before(), 2 * divide_up(from.width, 2) + before(), from.channels};
  }
};

// One row of the normed, padded map, as the convolution wants it; zeros enter after the norm. Rows are counted over all
// images. `spare` has room for a token.
inline void norm_row(const float* map, const Map& from, const Merge& merge, int row, const Activations& out,
                     float* spare) {
  const Map padded = merge.padded(from);
  const bool coded = merge.convolution.codes;
  const int C = from.channels, image = row / padded.height, y = row % padded.height - merge.before();
  for (int column = 0; column < padded.width; ++column) {
    const size_t place = static_cast<size_t>(row) * padded.width + column;
    float* to = coded ? spare : out.rows + place * C;
    const int x = column - merge.before();
    if (y < 0 || y >= from.height || x < 0 || x >= from.width) {
      std::memset(to, 0, C * sizeof(float));
    } else {
      normalise(map + ((static_cast<size_t>(image) * from.height + y) * from.width + x) * C, C, merge.norm, to);
    }
    if (coded) out.codings[place] = code_row(to, C, out.codes_of(place));
    else if (merge.convolution.paired()) out.pair(merge.convolution, Range{0, C}, place);
  }
}

// Tokens [begin, end) of the next map, some panels of their channels, from the normed, padded map. The tokens under a
// row of the kernel lie side by side, so that each of its rows is one product; of codes or pairs, each token is one, for
// each has a scale of its own. `sources` has room for a place for each token.
inline void merge_tokens(const Activations& normed, const Map& padded, const Map& to, const Merge& merge, Range panels,
                         size_t begin, size_t end, size_t* sources, float* out) {
  const int C = padded.channels, depth = merge.kernel * C, rows = static_cast<int>(end - begin);
  for (size_t token = begin; token < end; ++token) {
    const size_t image = token / to.area(), within = token % to.area();
    const size_t y = image * padded.height + 2 * (within / to.width), x = 2 * (within % to.width);
    sources[token - begin] = y * padded.width + x;
  }
  const Rows result{out + begin * to.channels + merge.convolution.column(panels.begin), static_cast<size_t>(to.channels)};
  for (int row = 0; row < merge.kernel; ++row) {
    const size_t below = static_cast<size_t>(row) * padded.width;
    const int input = row * depth;
    if (merge.convolution.plain()) {
      multiply(merge.convolution, panels, Range{input, input + depth},
               [&](int i) { return normed.rows + (sources[i] + below) * C; }, rows, row ? Finish::add : Finish::set,
               result);
      continue;
    }
    for (int column = 0; column < merge.kernel; ++column) {
      const int place = input + column * C;
      const auto source = [&](int i) { return sources[i] + below + column; };
      const Finish finish = place ? Finish::add : Finish::set;
      if (merge.convolution.codes) {
        multiply_codes(merge.convolution, panels, Range{place, place + C},
                       [&](int i) { return normed.coded(source(i)); }, rows, finish, result);
      } else {
        multiply_pairs(merge.convolution, panels, Range{place, place + C},
                       [&](int i) { return normed.rows + source(i) * C; },
                       [&](int i) { return normed.pairings + source(i) * normed.pairing_stride; }, rows, finish, result);
      }
    }
  }
}

}  // namespace davit

// Channel attention of maps with many tokens, by the Gram matrix of their normed tokens X.
//
// query^T key = Wq (X^T X) Wk^T: the matrix, C x C and symmetric, takes the place of two products of all tokens. Values,
// affinity A and projection are one linear map for each image, Wp A Wv, in the place of two more. What is left for each
// image alone grows with C^3 and does not know the tokens. A one at the end of every token makes weights of the biases:
// matrices have one more row.
#pragma once

#include "strips.hpp"

namespace davit {

namespace detail {

// out (inputs + 1, count): the weights of some outputs, row after row of inputs, then the bias.
inline void unpack(const Linear& linear, int first, int count, float* out) {
  for (int p = 0; p < linear.panels(); ++p) {
    const Panel panel = linear.panel(p);
    for (int j = 0; j < panel.width * LANES; j += LANES) {
      const int output = panel.first * LANES + j - first;
      if (output < 0 || output >= count) continue;
      for (int input = 0; input < linear.inputs; ++input) {
        Vec weights = load(linear.at(panel, input) + j);
        if (linear.paired()) weights *= load(linear.scales + first + output) * fill(linear.input_scales[input]);
        store(out + static_cast<size_t>(input) * count + output, weights);
      }
      store(out + static_cast<size_t>(linear.inputs) * count + output, load(linear.bias + first + output));
    }
  }
}

// c = a B + bias, or += with `add`; B is (inputs, outputs), outputs whole vectors, row after row. Sums of so many inputs
// are added up.
template <class In, class Out>
void multiply_matrix(const float* b, int inputs, int outputs, const float* bias, bool add, In in, int rows, Out out,
                     int summed = DEPTH_BLOCK) {
  Linear shape;  // only its cut into panels
  shape.vectors = outputs / LANES;
  for (int p = 0; p < shape.panels(); ++p) {
    const Panel panel = shape.panel(p);
    const int column = panel.first * LANES;
    for (int k = 0; k < inputs; k += summed) {
      const float* right = b + static_cast<size_t>(k) * outputs + column;
      for_tiles(rows, [&](int begin, int height) {
        const float* a[TILE_ROWS];
        float* c[TILE_ROWS];
        for (int i = 0; i < height; ++i) {
          a[i] = in(begin + i) + k;
          c[i] = out(begin + i) + column;
        }
        choose_tile(height, panel.width)(a, right, outputs, std::min(summed, inputs - k),
                                         bias && k == 0 ? bias + column : nullptr, add || k > 0, c, right);
      });
    }
  }
}

template <int WIDTH>
void add_gram_panel(const float* x, int channels, int tokens, int column, float* gram) {
  const size_t C = channels;
  for (int i = 0; i < column + WIDTH * LANES; i += TILE_ROWS) {
    outer_tile<TILE_ROWS, WIDTH>(x + i, x + column, C, tokens, gram + i * C + column, C);
  }
}

}  // namespace detail

// gram (C + 1, C) += X^T X, of which only the elements on and above the diagonal count, and the sums of the tokens.
inline void add_gram(const float* x, int channels, int tokens, float* gram) {
  Linear shape;
  shape.vectors = channels / LANES;
  for (int p = 0; p < shape.panels(); ++p) {
    const Panel panel = shape.panel(p);
    const auto add = panel.width == 3   ? detail::add_gram_panel<3>
                     : panel.width == 2 ? detail::add_gram_panel<2>
                                        : detail::add_gram_panel<1>;
    add(x, channels, tokens, panel.first * LANES, gram);
  }
  float* sums = gram + static_cast<size_t>(channels) * channels;
  for (int c = 0; c < channels; c += LANES) {
    for (int begin = 0; begin < tokens; begin += SUMMED) {
      Vec some{};
      for (int t = begin; t < std::min(tokens, begin + SUMMED); ++t) some += load(x + static_cast<size_t>(t) * channels + c);
      store(sums + c, load(sums + c) + some);
    }
  }
}

// Row `row` of X^T X, or with `row` = C the sums, from the parts that it was added up in.
inline void gram_row(const float* parts, int count, int channels, int row, float* out) {
  const size_t C = channels, size = (C + 1) * C;
  const int mirrored = row < channels ? row : 0;
  for (int c = 0; c < channels; ++c) {
    const size_t at = c < mirrored ? c * C + row : row * C + c;
    double all = 0.0;  // these are the largest numbers of all, and softmax will take differences
    for (int p = 0; p < count; ++p) all += parts[p * size + at];
    out[c] = static_cast<float>(all);
  }
}

inline void channel_gram(const Context& context, const StagePlan& plan, const Block& block, const float* in,
                         float* out) {
  const Map& map = plan.map;
  const Cut& strips = plan.channel_strips;
  const int C = map.channels, groups = C / HEAD, parts = plan.gram_parts;
  const size_t size = static_cast<size_t>(C + 1) * C, width = C;
  float* query = context.space.gram;  // weights; then for each image the parts, and what is made of them
  float* key = query + size;
  float* value = key + size;
  float* projection = value + size;
  const auto parts_of = [&](int image) { return projection + size + static_cast<size_t>(image) * (parts + 1) * size; };
  const auto product_of = [&](int image) { return parts_of(image) + parts * size; };
  const auto strip_rows = [&](int image, int strip) {
    return Range{image * map.height + strips.begin(strip), image * map.height + strips.end(strip)};
  };
  context.pool.run(4, context.threads, [&](int which, int) {
    const Linear& layer = which < 2 ? block.qkv : which == 2 ? block.value : block.projection;
    detail::unpack(layer, which == 1 ? C : 0, C, query + which * size);
  });
  Linear plain;  // tokens as they are
  plain.inputs = C;
  context.pool.run(map.batch * parts, context.threads, [&](int item, int thread) {
    const int image = item / parts, part = item % parts;
    float* gram = parts_of(image) + part * size;
    std::memset(gram, 0, size * sizeof(float));
    for (int s = strips.count * part / parts; s < strips.count * (part + 1) / parts; ++s) {
      const Range rows = strip_rows(image, s);
      const int tokens = (rows.end - rows.begin) * map.width;
      Pieces pieces(context.space.of_thread(thread));
      const BlockScratch scratch(pieces, plan, tokens);
      gather_rows(in, map, block.attention_position, rows.begin, rows.end, out, plain, scratch.y);
      add_gram(scratch.y.rows, C, tokens, gram);
    }
  });
  const Cut rows = cut(C + 1, GRAM_ROWS, context.threads);
  context.pool.run(map.batch * rows.count, context.threads, [&](int item, int thread) {  // (X^T X) Wk^T
    const int image = item / rows.count, begin = rows.begin(item % rows.count), end = rows.end(item % rows.count);
    const float* sums = parts_of(image) + size - C;
    float* some = Pieces(context.space.of_thread(thread)).floats(static_cast<size_t>(end - begin) * C);
    float* product = product_of(image) + static_cast<size_t>(begin) * C;
    for (int row = begin; row < end; ++row) {
      gram_row(parts_of(image), parts, C, row, some + static_cast<size_t>(row - begin) * C);
      double ones = 0.0;  // the element under the token's one: a sum, or how many
      for (int p = 0; p < parts && row < C; ++p) ones += sums[p * size + row];
      if (row == C) ones = static_cast<double>(map.area());
      float* to = product + static_cast<size_t>(row - begin) * C;
      for (int c = 0; c < C; c += LANES) store(to + c, fill(static_cast<float>(ones)) * load(key + size - C + c));
    }
    detail::multiply_matrix(key, C, C, nullptr, true, ConstRows{some, width}, end - begin, Rows{product, width},
                            SUMMED);
  });
  const float scale = affinity_scale(context.model, map);
  context.pool.run(map.batch * groups, context.threads, [&](int item, int) {
    alignas(LINE) float logits[AFFINITY];
    channel_logits(query + item % groups * HEAD, product_of(item / groups) + item % groups * HEAD, width, C + 1, logits);
    channel_affinity(logits, 1, 0, scale, context.space.affinity + static_cast<size_t>(item) * AFFINITY);
  });
  context.pool.run(map.batch * rows.count, context.threads, [&](int item, int thread) {  // Wp A Wv, transposed
    const int image = item / rows.count, begin = rows.begin(item % rows.count), end = rows.end(item % rows.count);
    float* some = Pieces(context.space.of_thread(thread)).floats(static_cast<size_t>(end - begin) * C);
    const float* affinity = context.space.affinity + static_cast<size_t>(image) * groups * AFFINITY;
    for (int group = 0; group < groups; ++group) {
      apply_affinity(value + static_cast<size_t>(begin) * C + group * HEAD, width,
                     affinity + static_cast<size_t>(group) * AFFINITY, end - begin, some + group * HEAD, width);
    }
    float* to = product_of(image) + static_cast<size_t>(begin) * C;
    detail::multiply_matrix(projection, C, C, nullptr, false, ConstRows{some, width}, end - begin, Rows{to, width});
    for (int c = 0; end == C + 1 && c < C; c += LANES) {
      float* last = product_of(image) + size - C + c;
      store(last, load(last) + load(block.projection.bias + c));
    }
  });
  // The tokens are normed once more: that costs less than a map to keep them in.
  context.pool.run(map.batch * strips.count, context.threads, [&](int item, int thread) {
    const int image = item / strips.count;
    const Range of_strip = strip_rows(image, item % strips.count);
    const int tokens = (of_strip.end - of_strip.begin) * map.width;
    float* first = out + static_cast<size_t>(of_strip.begin) * map.width * C;
    Pieces pieces(context.space.of_thread(thread));
    const BlockScratch scratch(pieces, plan, tokens);
    for (int token = 0; token < tokens; ++token) scratch.y.norm(plain, first + token * width, token);
    const float* matrix = product_of(image);
    detail::multiply_matrix(matrix, C, C, matrix + size - C, true, ConstRows{scratch.y.rows, width}, tokens,
                            Rows{first, width});
  });
}

}  // namespace davit

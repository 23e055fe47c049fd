// Images through the whole model.
#pragma once

#include <cstring>
#include <utility>

#include "gram.hpp"
#include "wide.hpp"

namespace davit {

namespace detail {

inline void embed_images(const Context& context, const Images& images, const Map& map, float* out) {
  const Cut strips = cut(static_cast<int>(map.tokens()), EMBED_TOKENS, context.threads);
  context.pool.run(strips.count, context.threads, [&](int strip, int thread) {
    Pieces pieces(context.space.of_thread(thread));
    embed(images, map, context.model.patch, context.model.patch_norm, strips.begin(strip), strips.end(strip),
          pieces.floats(static_cast<size_t>(EMBED_TOKENS) * context.model.patch.inputs), out);
  });
}

// The normed map goes to `spare`, and what is made of it back to `x`.
inline void merge_maps(const Context& context, const Merge& merge, const Map& from, const Map& to, float* x,
                       float* spare) {
  const Map padded = merge.padded(from);
  const Activations normed = context.space.normed(spare, from.channels);
  context.pool.run(padded.batch * padded.height, context.threads, [&](int row, int thread) {
    norm_row(x, from, merge, row, normed, context.space.of_thread(thread));
  });
  const Cut strips = cut(static_cast<int>(to.tokens()), MERGE_TOKENS, context.threads);
  // Where there are few strips, threads also share out the channels.
  const int panels = merge.convolution.panels();
  const Cut columns = cut(panels, strips.count < 2 * context.threads ? 4 : panels, 1);
  context.pool.run(strips.count * columns.count, context.threads, [&](int item, int thread) {
    const int strip = item / columns.count, column = item % columns.count;
    Pieces pieces(context.space.of_thread(thread));
    merge_tokens(normed, padded, to, merge, Range{columns.begin(column), columns.end(column)}, strips.begin(strip),
                 strips.end(strip), pieces.of<size_t>(MERGE_TOKENS), x);
  });
}

// One attention block; the map goes from `x` through `spare` and back, or the two change places.
inline void run_block(const Context& context, const StagePlan& plan, const Block& block, float*& x, float*& spare) {
  const bool gram = plan.gram_parts && block.gram();
  const auto attention = !block.channel ? (plan.wide ? window_wide : window_strips)
                         : gram         ? channel_gram
                                        : (plan.wide ? channel_wide : channel_strips);
  attention(context, plan, block, x, spare);
  std::swap(x, spare);
  if (!block.mlp) return;
  (plan.wide ? mlp_wide : mlp_strips)(context, plan, block, x, spare);
  std::swap(x, spare);
}

inline void give_map(const Context& context, const Map& map, Norm norm, const float* x, float* out) {
  const size_t row = static_cast<size_t>(map.width) * map.channels;
  context.pool.run(map.batch * map.height, context.threads, [&](int y, int) {
    if (!norm.weight) {
      std::memcpy(out + y * row, x + y * row, row * sizeof(float));
      return;
    }
    for (size_t at = y * row; at < (y + 1) * row; at += map.channels) normalise(x + at, map.channels, norm, out + at);
  });
}

// Mean over each map, norm (its weight and bias are in the head), linear.
inline void classify(const Context& context, const Map& map, const float* x, float* logits) {
  const Linear& head = context.model.head;
  const size_t C = map.channels;
  context.pool.run(map.batch, context.threads, [&](int image, int) {
    float* pooled = context.space.pooled + image * C;
    const float* first = x + image * map.area() * C;
    const Vec count = fill(static_cast<float>(map.area()));
    for (size_t c = 0; c < C; c += LANES) {
      Vec all{};
      for (int y = 0; y < map.height; ++y) {  // sums of sums keep more digits
        Vec row{};
        for (int i = 0; i < map.width; ++i) row += load(first + (static_cast<size_t>(y) * map.width + i) * C + c);
        all += row;
      }
      store(pooled + c, all / count);
    }
    normalise(pooled, map.channels, pooled);
  });
  float* padded = context.space.answers;
  const size_t width = static_cast<size_t>(head.vectors) * LANES;
  multiply_shared(context, head, ConstRows{context.space.pooled, C}, map.batch, Finish::set, Rows{padded, width});
  for (int image = 0; image < map.batch; ++image) {
    std::memcpy(logits + static_cast<size_t>(image) * head.outputs, padded + image * width, head.outputs * sizeof(float));
  }
}

}  // namespace detail

// Logits (B, classes) to outputs[0]; or four maps (B, H, W, C) to outputs[0] to [3].
inline void forward(const Context& context, const Images& images, float* const* outputs) {
  const Model& model = context.model;
  const auto maps = maps_of(model, images.batch, images.height, images.width);
  float* x = context.space.maps[0];
  float* spare = context.space.maps[1];
  for (int s = 0; s < STAGES; ++s) {
    const Stage& stage = model.stages[s];
    const StagePlan plan(maps[s], stage, model.window, context.threads);
    if (s == 0) {
      detail::embed_images(context, images, maps[0], x);
    } else {
      detail::merge_maps(context, stage.merge, maps[s - 1], maps[s], x, spare);
    }
    for (const Block& block : stage.blocks) detail::run_block(context, plan, block, x, spare);
    if (!model.head.outputs) detail::give_map(context, maps[s], stage.map_norm, x, outputs[s]);
  }
  if (model.head.outputs) detail::classify(context, maps[STAGES - 1], x, outputs[0]);
}

}  // namespace davit

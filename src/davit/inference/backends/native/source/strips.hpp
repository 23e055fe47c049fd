// Attention blocks strip by strip: everything between two readings of the map happens in a thread's own cache.
#pragma once

#include <cmath>

#include "pool.hpp"
#include "workspace.hpp"

namespace davit {

// What all parts of a forward pass share.
struct Context {
  const Model& model;
  const Workspace& space;
  Pool& pool;
  int threads;
};

inline float affinity_scale(const Model& model, const Map& map) {
  return 1.0f / std::sqrt(static_cast<float>(model.scale_by_tokens ? map.area() : HEAD));
}

// One head of the attention of windows [begin, end), whose tokens stand in `scratch` from `first` on.
inline void attend_windows(const Windows& windows, const Block& block, int begin, int end, int head,
                           const AttentionScratch& attention, const BlockScratch& scratch, size_t first) {
  const size_t C = windows.map.channels;
  for (int window = begin; window < end; ++window) {
    const size_t token = windows.before(window) - first;
    const float* query = scratch.qkv + token * 3 * C + head * HEAD;
    const float* padded = block.padded_key_value + head * HEAD;
    const WindowHead one{query, query + C, query + 2 * C, 3 * C, windows.tokens(window), windows.padded(window),
                         padded, padded + C};
    attend_window(one, attention, scratch.y.rows + token * C + head * HEAD, C);
  }
}

inline void window_strips(const Context& context, const StagePlan& plan, const Block& block, const float* in,
                          float* out) {
  const Windows& windows = plan.windows;
  const size_t C = plan.map.channels;
  context.pool.run(plan.window_strips.count, context.threads, [&](int strip, int thread) {
    const int begin = plan.window_strips.begin(strip), end = plan.window_strips.end(strip);
    const size_t first = windows.before(begin);
    const int tokens = static_cast<int>(windows.before(end) - first);
    Pieces pieces(context.space.of_thread(thread));
    const AttentionScratch attention(pieces, windows.side * windows.side);
    const BlockScratch scratch(pieces, plan, tokens);
    gather_windows(in, windows, block.attention_position, begin, end, out, block.qkv, scratch.y, scratch.places);
    multiply(block.qkv, all_panels(block.qkv), all_inputs(block.qkv), scratch.y, tokens, Finish::set,
             Rows{scratch.qkv, 3 * C});
    for (int head = 0; head < plan.map.channels / HEAD; ++head) {
      attend_windows(windows, block, begin, end, head, attention, scratch, first);
    }
    scratch.y.prepare(block.projection, 0, tokens);
    multiply(block.projection, all_panels(block.projection), all_inputs(block.projection), scratch.y, tokens,
             Finish::add, [&](int row) { return scratch.places[row]; });
  });
}

// Twice over the map: once for the logits, which sum over all tokens of an image, and once to apply their softmax.
inline void channel_strips(const Context& context, const StagePlan& plan, const Block& block, const float* in,
                           float* out) {
  const Map& map = plan.map;
  const Cut& strips = plan.channel_strips;
  const size_t C = map.channels;
  const int groups = map.channels / HEAD;
  const auto rows_of = [&](int item) {
    const int first = item / strips.count * map.height, strip = item % strips.count;
    return Range{first + strips.begin(strip), first + strips.end(strip)};
  };
  context.pool.run(map.batch * strips.count, context.threads, [&](int item, int thread) {
    const Range rows = rows_of(item);
    const int tokens = (rows.end - rows.begin) * map.width;
    Pieces pieces(context.space.of_thread(thread));
    const BlockScratch scratch(pieces, plan, tokens);
    gather_rows(in, map, block.attention_position, rows.begin, rows.end, out, block.qkv, scratch.y);
    float* values = context.space.values + static_cast<size_t>(rows.begin) * map.width * C;
    multiply(block.value, all_panels(block.value), all_inputs(block.value), scratch.y, tokens, Finish::set,
             Rows{values, C});
    multiply(block.qkv, all_panels(block.qkv), all_inputs(block.qkv), scratch.y, tokens, Finish::set,
             Rows{scratch.qkv, 2 * C});
    for (int group = 0; group < groups; ++group) {
      const float* query = scratch.qkv + group * HEAD;
      channel_logits(query, query + C, 2 * C, tokens,
                     context.space.logits + (static_cast<size_t>(item) * groups + group) * AFFINITY);
    }
  });
  const float scale = affinity_scale(context.model, map);
  context.pool.run(map.batch * groups, context.threads, [&](int item, int) {
    const size_t image = item / groups, group = item % groups;
    channel_affinity(context.space.logits + (image * strips.count * groups + group) * AFFINITY, strips.count,
                     static_cast<size_t>(groups) * AFFINITY, scale,
                     context.space.affinity + static_cast<size_t>(item) * AFFINITY);
  });
  context.pool.run(map.batch * strips.count, context.threads, [&](int item, int thread) {
    const Range rows = rows_of(item);
    const int tokens = (rows.end - rows.begin) * map.width;
    const size_t first = static_cast<size_t>(rows.begin) * map.width * C;
    Pieces pieces(context.space.of_thread(thread));
    const BlockScratch scratch(pieces, plan, tokens);
    const float* affinity = context.space.affinity + static_cast<size_t>(item / strips.count) * groups * AFFINITY;
    for (int group = 0; group < groups; ++group) {
      apply_affinity(context.space.values + first + group * HEAD, C, affinity + static_cast<size_t>(group) * AFFINITY,
                     tokens, scratch.y.rows + group * HEAD, C);
    }
    scratch.y.prepare(block.projection, 0, tokens);
    multiply(block.projection, all_panels(block.projection), all_inputs(block.projection), scratch.y, tokens,
             Finish::add, Rows{out + first, C});
  });
}

// GELU of the hidden channels: with the first product, or with the codes for the second.
inline Finish hidden_finish(const Block& block) { return block.fc2.codes ? Finish::set : Finish::gelu; }

inline void prepare_hidden(const Block& block, const Activations& hidden, Range inputs, size_t begin, size_t end) {
  const int count = inputs.end - inputs.begin;
  for (size_t row = begin; block.fc2.codes && row < end; ++row) {
    hidden.codings[row] = code_gelu(hidden.rows + row * hidden.stride, count, hidden.codes_of(row));
  }
  for (size_t row = begin; block.fc2.paired() && row < end; ++row) hidden.pair(block.fc2, inputs, row);
}

inline void mlp_strips(const Context& context, const StagePlan& plan, const Block& block, const float* in, float* out) {
  const size_t C = plan.map.channels;
  context.pool.run(plan.mlp_strips.count, context.threads, [&](int strip, int thread) {
    const int begin = plan.mlp_strips.begin(strip), end = plan.mlp_strips.end(strip);
    const int tokens = (end - begin) * plan.map.width;
    Pieces pieces(context.space.of_thread(thread));
    const BlockScratch scratch(pieces, plan, tokens);
    gather_rows(in, plan.map, block.mlp_position, begin, end, out, block.fc1, scratch.y);
    float* first = out + static_cast<size_t>(begin) * plan.map.width * C;
    for (int panel = 0; panel < block.fc1.panels(); panel += plan.hidden_panels) {
      const int last = std::min(panel + plan.hidden_panels, block.fc1.panels());
      const Range hidden{block.fc1.column(panel), std::min(block.fc1.column(last), block.fc2.inputs)};
      multiply(block.fc1, Range{panel, last}, all_inputs(block.fc1), scratch.y, tokens, hidden_finish(block),
               Rows{scratch.hidden.rows, scratch.hidden.stride});
      prepare_hidden(block, scratch.hidden, hidden, 0, tokens);
      multiply(block.fc2, all_panels(block.fc2), hidden, scratch.hidden, tokens, Finish::add, Rows{first, C});
    }
  });
}

}  // namespace davit

// Attention blocks of maps with few tokens: every thread takes all tokens and some of the channels, step by step.
#pragma once

#include "strips.hpp"

namespace davit {

// All rows of a layer, its panels shared out.
template <class In, class Out>
void multiply_shared(const Context& context, const Linear& linear, In in, int rows, Finish finish, Out out) {
  context.pool.run(linear.panels(), context.threads, [&](int panel, int) {
    const int column = linear.column(panel);
    multiply(linear, Range{panel, panel + 1}, all_inputs(linear), in, rows, finish,
             [&](int row) { return out(row) + column; });
  });
}

// Rows as a layer wants them, shared out.
inline void prepare_shared(const Context& context, const Linear& layer, const Activations& in, int rows) {
  if (layer.plain()) return;
  context.pool.run(rows, context.threads, [&](int row, int) { in.prepare(layer, row, row + 1); });
}

inline void window_wide(const Context& context, const StagePlan& plan, const Block& block, const float* in, float* out) {
  const Windows& windows = plan.windows;
  const int tokens = static_cast<int>(plan.map.tokens()), count = windows.count();
  const size_t C = plan.map.channels;
  Pieces pieces(context.space.shared);
  const BlockScratch scratch(pieces, plan, tokens);
  context.pool.run(count, context.threads, [&](int window, int) {
    const size_t first = windows.before(window);
    gather_windows(in, windows, block.attention_position, window, window + 1, out, block.qkv, scratch.y.from(first),
                   scratch.places + first);
  });
  multiply_shared(context, block.qkv, scratch.y, tokens, Finish::set, Rows{scratch.qkv, 3 * C});
  const int heads = plan.map.channels / HEAD;
  context.pool.run(count * heads, context.threads, [&](int item, int thread) {
    Pieces own(context.space.of_thread(thread));
    const AttentionScratch attention(own, windows.side * windows.side);
    attend_windows(windows, block, item / heads, item / heads + 1, item % heads, attention, scratch, 0);
  });
  prepare_shared(context, block.projection, scratch.y, tokens);
  multiply_shared(context, block.projection, scratch.y, tokens, Finish::add,
                  [&](int row) { return scratch.places[row]; });
}

inline void gather_shared(const Context& context, const Map& map, Position position, const float* in, float* out,
                          const Linear& layer, const Activations& y) {
  context.pool.run(map.batch * map.height, context.threads, [&](int row, int) {
    gather_rows(in, map, position, row, row + 1, out, layer, y.from(static_cast<size_t>(row) * map.width));
  });
}

inline void channel_wide(const Context& context, const StagePlan& plan, const Block& block, const float* in,
                         float* out) {
  const Map& map = plan.map;
  const size_t C = map.channels;
  const int tokens = static_cast<int>(map.tokens()), groups = map.channels / HEAD;
  const int area = static_cast<int>(map.area());
  Pieces pieces(context.space.shared);
  const BlockScratch scratch(pieces, plan, tokens);
  gather_shared(context, map, block.attention_position, in, out, block.qkv, scratch.y);
  float* values = context.space.values;
  multiply_shared(context, block.qkv, scratch.y, tokens, Finish::set, Rows{scratch.qkv, 2 * C});
  multiply_shared(context, block.value, scratch.y, tokens, Finish::set, Rows{values, C});
  const float scale = affinity_scale(context.model, map);
  context.pool.run(map.batch * groups, context.threads, [&](int item, int) {
    const size_t first = static_cast<size_t>(item / groups) * area;
    const int channel = item % groups * HEAD;
    alignas(LINE) float logits[AFFINITY];
    alignas(LINE) float affinity[AFFINITY];
    const float* query = scratch.qkv + first * 2 * C + channel;
    channel_logits(query, query + C, 2 * C, area, logits);
    channel_affinity(logits, 1, 0, scale, affinity);
    apply_affinity(values + first * C + channel, C, affinity, area, scratch.y.rows + first * C + channel, C);
  });
  prepare_shared(context, block.projection, scratch.y, tokens);
  multiply_shared(context, block.projection, scratch.y, tokens, Finish::add, Rows{out, C});
}

inline void mlp_wide(const Context& context, const StagePlan& plan, const Block& block, const float* in, float* out) {
  const int tokens = static_cast<int>(plan.map.tokens());
  const size_t C = plan.map.channels;
  Pieces pieces(context.space.shared);
  const BlockScratch scratch(pieces, plan, tokens);
  gather_shared(context, plan.map, block.mlp_position, in, out, block.fc1, scratch.y);
  multiply_shared(context, block.fc1, scratch.y, tokens, hidden_finish(block),
                  Rows{scratch.hidden.rows, scratch.hidden.stride});
  if (!block.fc2.plain()) {
    context.pool.run(tokens, context.threads, [&](int row, int) {
      prepare_hidden(block, scratch.hidden, all_inputs(block.fc2), row, row + 1);
    });
  }
  multiply_shared(context, block.fc2, scratch.hidden, tokens, Finish::add, Rows{out, C});
}

}  // namespace davit

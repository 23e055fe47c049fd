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

inline void window_wide(const Context& context, const StagePlan& plan, const Block& block, const float* in, float* out) {
  const Windows& windows = plan.windows;
  const int tokens = static_cast<int>(plan.map.tokens()), count = windows.count();
  const size_t C = plan.map.channels;
  Pieces pieces(context.space.shared);
  const BlockScratch scratch(pieces, plan, tokens);
  context.pool.run(count, context.threads, [&](int window, int) {
    const size_t first = windows.before(window);
    gather_windows(in, windows, block.attention_position, window, window + 1, out, scratch.y + first * C,
                   scratch.places + first);
  });
  multiply_shared(context, block.qkv, ConstRows{scratch.y, C}, tokens, Finish::set, Rows{scratch.qkv, 3 * C});
  const int heads = plan.map.channels / HEAD;
  context.pool.run(count * heads, context.threads, [&](int item, int thread) {
    Pieces own(context.space.of_thread(thread));
    const AttentionScratch attention(own, windows.side * windows.side);
    attend_windows(windows, block, item / heads, item / heads + 1, item % heads, attention, scratch, 0);
  });
  multiply_shared(context, block.projection, ConstRows{scratch.y, C}, tokens, Finish::add,
                  [&](int row) { return scratch.places[row]; });
}

inline void gather_shared(const Context& context, const Map& map, Position position, const float* in, float* out,
                          float* y) {
  context.pool.run(map.batch * map.height, context.threads, [&](int row, int) {
    gather_rows(in, map, position, row, row + 1, out, y + static_cast<size_t>(row) * map.width * map.channels);
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
  gather_shared(context, map, block.attention_position, in, out, scratch.y);
  float* values = context.space.values;
  multiply_shared(context, block.qkv, ConstRows{scratch.y, C}, tokens, Finish::set, Rows{scratch.qkv, 2 * C});
  multiply_shared(context, block.value, ConstRows{scratch.y, C}, tokens, Finish::set, Rows{values, C});
  const float scale = affinity_scale(context.model, map);
  context.pool.run(map.batch * groups, context.threads, [&](int item, int) {
    const size_t first = static_cast<size_t>(item / groups) * area;
    const int channel = item % groups * HEAD;
    alignas(LINE) float logits[AFFINITY];
    alignas(LINE) float affinity[AFFINITY];
    const float* query = scratch.qkv + first * 2 * C + channel;
    channel_logits(query, query + C, 2 * C, area, logits);
    channel_affinity(logits, 1, 0, scale, affinity);
    apply_affinity(values + first * C + channel, C, affinity, area, scratch.y + first * C + channel, C);
  });
  multiply_shared(context, block.projection, ConstRows{scratch.y, C}, tokens, Finish::add, Rows{out, C});
}

inline void mlp_wide(const Context& context, const StagePlan& plan, const Block& block, const float* in, float* out) {
  const int tokens = static_cast<int>(plan.map.tokens());
  const size_t C = plan.map.channels, width = plan.hidden;
  Pieces pieces(context.space.shared);
  const BlockScratch scratch(pieces, plan, tokens);
  gather_shared(context, plan.map, block.mlp_position, in, out, scratch.y);
  multiply_shared(context, block.fc1, ConstRows{scratch.y, C}, tokens, Finish::gelu, Rows{scratch.hidden, width});
  multiply_shared(context, block.fc2, ConstRows{scratch.hidden, width}, tokens, Finish::add, Rows{out, C});
}

}  // namespace davit

// The memory of a forward pass: how it is cut into strips, and how much that takes.
#pragma once

#include <algorithm>
#include <array>

#include "channel_attention.hpp"
#include "embedding.hpp"
#include "memory.hpp"
#include "model.hpp"
#include "windows.hpp"

namespace davit {

constexpr int STRIP = 37632;      // channels times tokens of a strip: with what is made of them about half a MiB
constexpr int HIDDEN_PANELS = 16; // of an MLP's hidden channels computed at once
static_assert(HIDDEN_PANELS * 3 * LANES % PAIRED_BLOCK == 0, "products in pairs begin with a block");
constexpr int EMBED_TOKENS = 112;
constexpr int MERGE_TOKENS = 98;
// For each channel; from so many on, channel attention takes the Gram matrix. Products in pairs make up for it longer.
constexpr int GRAM_TOKENS = DAVIT_PAIRED ? 4 : 2;
constexpr int GRAM_ROWS = 32;     // of it, computed at once
constexpr int GRAM_FLOATS = 1 << 20;  // that parts of it may take, beyond one for each thread
constexpr int FEW_TOKENS = 64;    // for each thread; below, threads share out channels instead of tokens

inline std::array<Map, STAGES> maps_of(const Model& model, int batch, int height, int width) {
  std::array<Map, STAGES> maps;
  for (int s = 0; s < STAGES; ++s) {
    const int stride = s ? 2 : PATCH_STRIDE;
    height = divide_up(height, stride);
    width = divide_up(width, stride);
    maps[s] = {batch, height, width, model.stages[s].width};
  }
  return maps;
}

// How the blocks of one stage are computed.
struct StagePlan {
  Map map;
  bool wide;      // all tokens together, channels shared out
  Windows windows;
  Cut window_strips;   // windows, over all images
  Cut channel_strips;  // rows of one image
  Cut mlp_strips;      // rows, over all images
  int hidden;          // channels of an MLP computed at once
  int hidden_panels;
  bool coded;  // some layers are in int8
  int gram_parts;  // in which the Gram matrix of an image is added up; 0 where the map has too few tokens for it
  bool keeps_values;  // some channel attention goes without the Gram matrix

  StagePlan(const Map& stage, const Stage& weights, int side, int threads) : map(stage), windows{stage, side} {
    const int tokens = std::max(1, STRIP / map.channels), rows = std::max(1, tokens / map.width);
    wide = map.tokens() <= static_cast<size_t>(FEW_TOKENS) * threads;
    window_strips = cut(windows.count(), std::max(1, tokens / std::max(1, windows.tokens(0))), threads);
    channel_strips = cut(map.height, rows, divide_up(threads, map.batch));
    mlp_strips = cut(map.batch * map.height, rows, threads);
    const Linear& fc1 = weights.blocks[0].fc1;
    coded = weights.coded;
    const auto any = [&](auto&& holds) { return std::any_of(weights.blocks.begin(), weights.blocks.end(), holds); };
    const bool plain = any([](const Block& block) { return block.gram(); });
    const bool many = !wide && map.area() >= static_cast<size_t>(GRAM_TOKENS) * map.channels;
    const int parts = std::min(4 * threads, std::max(threads, GRAM_FLOATS / ((map.channels + 1) * map.channels)));
    gram_parts = plain && many ? std::min(channel_strips.count, divide_up(parts, map.batch)) : 0;
    keeps_values = any([&](const Block& block) { return block.channel && !(gram_parts && block.gram()); });
    hidden_panels = wide ? fc1.panels() : std::min(HIDDEN_PANELS, fc1.panels());
    hidden = wide ? fc1.vectors * LANES : std::min(fc1.vectors * LANES, HIDDEN_PANELS * 3 * LANES);
  }
  size_t window_tokens() const {  // of the largest strip
    size_t most = 0;
    for (int s = 0; s < window_strips.count; ++s) {
      most = std::max(most, windows.before(window_strips.end(s)) - windows.before(window_strips.begin(s)));
    }
    return most;
  }
  size_t channel_tokens() const { return static_cast<size_t>(channel_strips.size) * map.width; }
  // Weights, and for each image the parts and a product; all (C + 1, C).
  size_t gram_floats() const {
    const size_t C = map.channels, matrices = 4 + static_cast<size_t>(map.batch) * (gram_parts + 1);
    return gram_parts ? matrices * (C + 1) * C : 0;
  }
  size_t mlp_tokens() const { return static_cast<size_t>(mlp_strips.size) * map.width; }
};

// What a block computes with, for the tokens of one strip, or for all of them where channels are shared out.
struct BlockScratch {
  Activations y;         // normed tokens, then what they attended to
  float* qkv = nullptr;  // query, key and value; or query and key
  Activations hidden;
  float** places = nullptr;

  BlockScratch(Pieces& pieces, const StagePlan& plan, size_t tokens) {
    const size_t C = plan.map.channels;
    y.rows = pieces.floats(tokens * C);
    y.stride = y.code_stride = C;
    qkv = pieces.floats(tokens * std::max<size_t>(3 * C, plan.hidden));  // the MLP comes after the attention
    hidden.rows = qkv;
    hidden.stride = hidden.code_stride = plan.hidden;
    if (plan.coded) {
      y.codes = pieces.of<Code>(tokens * C);
      y.codings = pieces.of<Coding>(tokens);
      hidden.codes = pieces.of<Code>(tokens * plan.hidden);
      hidden.codings = pieces.of<Coding>(tokens);
    }
    if (DAVIT_PAIRED) {
      y.pairing_stride = pairing_width(plan.map.channels);
      y.pairings = pieces.floats(tokens * y.pairing_stride);
      hidden.pairing_stride = pairing_width(plan.hidden);
      hidden.pairings = pieces.floats(tokens * hidden.pairing_stride);
    }
    places = pieces.of<float*>(tokens);
  }
};

struct Workspace {
  float* maps[2] = {};
  float* values = nullptr;    // of channel attention without its Gram matrix
  float* logits = nullptr;    // of channel attention, strip after strip
  float* affinity = nullptr;  // (B, C, 32)
  float* gram = nullptr;      // matrices of channel attention with many tokens
  float* pooled = nullptr;    // (B, C)
  float* answers = nullptr;   // of the head, rows of whole vectors
  float* shared = nullptr;    // scratch of blocks whose channels are shared out
  Coding* codings = nullptr;  // of the normed map under a merge in int8
  float* pairings = nullptr;  // the same in pairs
  float* own = nullptr;       // scratch of each thread
  size_t own_floats = 0;
  size_t used = 0;

  // With pieces of nothing, only `used` is worth knowing.
  Workspace(Pieces pieces, const Model& model, const std::array<Map, STAGES>& stages, int threads) {
    size_t map = 0, value = 0, logit = 0, relation = 0, common = 0, coded = 0, paired = 0, grams = 0;
    size_t own_most = embed_scratch(model);
    for (int s = 0; s < STAGES; ++s) {
      const StagePlan plan(stages[s], model.stages[s], model.window, threads);
      const size_t B = plan.map.batch, C = plan.map.channels;
      map = std::max(map, plan.map.floats());
      if (plan.keeps_values) value = std::max(value, plan.map.floats());
      if (s) {
        const Merge& merge = model.stages[s].merge;
        const Map padded = merge.padded(stages[s - 1]);
        map = std::max(map, padded.floats());
        if (merge.convolution.codes) coded = std::max(coded, padded.tokens());
        if (merge.convolution.paired()) paired = std::max(paired, padded.tokens() * pairing_width(padded.channels));
        own_most = std::max(own_most, token_scratch(padded));
      }
      logit = std::max(logit, B * plan.channel_strips.count * C * HEAD);
      relation = std::max(relation, B * C * HEAD);
      grams = std::max(grams, plan.gram_floats());
      own_most = std::max(own_most, strip_scratch(plan, model.window));
      if (plan.wide) {
        Pieces counted;
        BlockScratch(counted, plan, plan.map.tokens());
        common = std::max(common, counted.used());
      }
    }
    maps[0] = pieces.floats(map);
    maps[1] = pieces.floats(map);
    values = pieces.floats(value);
    logits = pieces.floats(logit);
    affinity = pieces.floats(relation);
    gram = pieces.floats(grams);
    pooled = pieces.floats(static_cast<size_t>(stages[3].batch) * stages[3].channels);
    answers = pieces.floats(static_cast<size_t>(stages[3].batch) * model.head.vectors * LANES);
    shared = pieces.floats(common);
    codings = pieces.of<Coding>(coded);
    pairings = pieces.floats(paired);
    own_floats = round_up(own_most, LARGE_PAGE / sizeof(float) / 512);  // whole small pages: no line is shared
    own = pieces.floats(own_floats * threads);
    used = pieces.used();
  }

  float* of_thread(int thread) const { return own + own_floats * thread; }
  // The normed map under a merge, as floats or codes, in one of the maps.
  Activations normed(float* map, int channels) const {
    const size_t C = channels;
    return {map, C, reinterpret_cast<Code*>(map), C, codings, pairings, pairing_width(channels)};
  }

 private:
  static size_t embed_scratch(const Model& model) {
    Pieces pieces;
    pieces.floats(static_cast<size_t>(EMBED_TOKENS) * model.patch.inputs);
    pieces.of<size_t>(MERGE_TOKENS);
    return pieces.used();
  }
  static size_t token_scratch(const Map& map) {
    Pieces pieces;
    pieces.floats(map.channels);
    return pieces.used();
  }
  static size_t strip_scratch(const StagePlan& plan, int side) {
    Pieces pieces;
    AttentionScratch(pieces, side * side);
    Pieces rows;
    if (plan.gram_parts) rows.floats(static_cast<size_t>(GRAM_ROWS) * plan.map.channels);
    if (!plan.wide) {
      BlockScratch(pieces, plan, std::max({plan.window_tokens(), plan.channel_tokens(), plan.mlp_tokens()}));
    }
    return std::max(pieces.used(), rows.used());
  }
};

}  // namespace davit

// The kernels one by one, for tests that compare each with its module of the reference model. Not part of the engine.
#include <vector>

#include "channel_attention.hpp"
#include "embedding.hpp"
#include "gram.hpp"
#include "model.hpp"
#include "window_attention.hpp"
#include "windows.hpp"

using namespace davit;

namespace {

// Rows of floats for a layer in float32.
Activations floats(float* rows, int channels) {
  Activations activations;
  activations.rows = rows;
  activations.stride = channels;
  return activations;
}

Linear any_layer(int inputs) {
  Linear layer;
  layer.inputs = inputs;
  return layer;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int test_lanes() { return LANES; }

// `count` is a multiple of the lanes.
void test_exp_negative(const float* x, int count, float* y) {
  for (int i = 0; i < count; i += LANES) store(y + i, exp_negative(load(x + i)));
}

void test_gelu(const float* x, int count, float* y) {
  for (int i = 0; i < count; i += LANES) store(y + i, gelu(load(x + i)));
}

void test_transpose(const float* x, float* y) {
  Vec square[LANES];
  for (int i = 0; i < LANES; ++i) square[i] = load(x + i * LANES);
  transpose(square);
  for (int i = 0; i < LANES; ++i) store(y + i * LANES, square[i]);
}

// x (rows, inputs) to y (rows, outputs): set, add (to what is there), or set with GELU.
void test_linear(const float* weights, const float* bias, int inputs, int outputs, const float* x, int rows, int finish,
                 float* y) {
  Store store;
  const Linear linear = pack(store, weights, bias, inputs, outputs);
  const size_t width = static_cast<size_t>(linear.vectors) * LANES;
  std::vector<float> padded(rows * width);
  for (int i = 0; i < rows; ++i) std::copy_n(y + static_cast<size_t>(i) * outputs, outputs, padded.begin() + i * width);
  multiply(linear, all_panels(linear), all_inputs(linear), ConstRows{x, static_cast<size_t>(inputs)}, rows,
           static_cast<Finish>(finish), Rows{padded.data(), width});
  for (int i = 0; i < rows; ++i) std::copy_n(padded.begin() + i * width, outputs, y + static_cast<size_t>(i) * outputs);
}

// The same by a layer in pairs, with inputs from `begin` on, a whole number of blocks.
void test_paired_linear(const float* weights, const float* bias, int inputs, int outputs, const float* x, int rows,
                        int begin, int finish, float* y) {
  Store store;
  const Linear linear = pack_pairs(store, weights, bias, inputs, outputs, inputs);
  const int some = inputs - begin;
  const size_t width = static_cast<size_t>(linear.vectors) * LANES, depth = some, numbers = pairing_width(some);
  std::vector<float> padded(rows * width), left(rows * depth), pairings(rows * numbers);
  for (int i = 0; i < rows; ++i) {
    std::copy_n(y + static_cast<size_t>(i) * outputs, outputs, padded.begin() + i * width);
    std::copy_n(x + static_cast<size_t>(i) * inputs + begin, some, left.begin() + i * depth);
    pair_row(left.data() + i * depth, some, linear.input_scales + begin, pairings.data() + i * numbers);
  }
  multiply_pairs(linear, all_panels(linear), Range{begin, inputs}, ConstRows{left.data(), depth},
                 ConstRows{pairings.data(), numbers}, rows, static_cast<Finish>(finish), Rows{padded.data(), width});
  for (int i = 0; i < rows; ++i) std::copy_n(padded.begin() + i * width, outputs, y + static_cast<size_t>(i) * outputs);
}

// Codes of rows (rows, inputs): of `x`, of `x` normed (in whole vectors), or of its GELU.
void test_codes(const float* x, int rows, int inputs, int kind, int* codes, float* scales) {
  std::vector<float> row(code_width(inputs), 1e9f);  // what stands behind a row must not matter
  std::vector<Code> found(row.size());
  for (int i = 0; i < rows; ++i) {
    std::copy_n(x + static_cast<size_t>(i) * inputs, inputs, row.begin());
    const Coding coding = kind == 0   ? code_row(row.data(), inputs, found.data())
                          : kind == 1 ? code_normalised(row.data(), inputs, found.data())
                                      : code_gelu(row.data(), inputs, found.data());
    scales[i] = coding.scale;
    for (int j = 0; j < inputs; ++j) codes[static_cast<size_t>(i) * inputs + j] = found[j];
  }
}

// x (rows, inputs) to y (rows, outputs) by a layer in int8, as `test_linear`; with inputs from `begin` on, a multiple of
// four.
void test_coded_linear(const int8_t* codes, const float* scales, const float* bias, int inputs, int outputs,
                       const float* x, int rows, int begin, int finish, float* y) {
  Store store;
  const Linear linear = pack_codes(store, codes, scales, bias, inputs, outputs);
  const int some = inputs - begin;
  const size_t width = static_cast<size_t>(linear.vectors) * LANES, depth = code_width(some);
  std::vector<float> padded(rows * width), row(depth);
  std::vector<Code> coded(rows * depth);
  std::vector<Coding> codings(rows);
  for (int i = 0; i < rows; ++i) {
    std::copy_n(y + static_cast<size_t>(i) * outputs, outputs, padded.begin() + i * width);
    std::copy_n(x + static_cast<size_t>(i) * inputs + begin, some, row.begin());
    codings[i] = code_row(row.data(), some, coded.data() + i * depth);
  }
  multiply_codes(linear, all_panels(linear), Range{begin, inputs},
                 [&](int i) { return CodedRow{coded.data() + i * depth, codings[i]}; }, rows,
                 static_cast<Finish>(finish), Rows{padded.data(), width});
  for (int i = 0; i < rows; ++i) std::copy_n(padded.begin() + i * width, outputs, y + static_cast<size_t>(i) * outputs);
}

int test_bytes() { return DAVIT_BYTES; }

// Position encoding and norm without weight and bias, of maps (B, H, W, C): the residual stream, the normed tokens.
void test_gather_rows(const float* map, int batch, int height, int width, int channels, const float* taps,
                      const float* bias, float* out, float* y) {
  gather_rows(map, Map{batch, height, width, channels}, Position{taps, bias}, 0, batch * height, out,
              any_layer(channels), floats(y, channels));
}

// Windows [begin, end) of the same; `y` window after window, `places` as offsets into `out`.
int test_gather_windows(const float* map, int batch, int height, int width, int channels, int side, int begin, int end,
                        const float* taps, const float* bias, float* out, float* y, long* places) {
  const Windows windows{Map{batch, height, width, channels}, side};
  const size_t tokens = windows.before(end) - windows.before(begin);
  std::vector<float*> found(tokens);
  gather_windows(map, windows, Position{taps, bias}, begin, end, out, any_layer(channels), floats(y, channels),
                 found.data());
  for (size_t i = 0; i < tokens; ++i) places[i] = found[i] - out;
  return static_cast<int>(tokens);
}

// Queries, keys and values (tokens, 32), queries scaled, and `padded` more tokens of one key and value.
void test_window_attention(const float* query, const float* key, const float* value, int tokens, int padded,
                           const float* padded_key, const float* padded_value, float* out) {
  Pieces counted;
  AttentionScratch(counted, tokens);
  const Buffer memory(counted.used());
  Pieces pieces(memory.data());
  const AttentionScratch scratch(pieces, tokens);
  attend_window(WindowHead{query, key, value, HEAD, tokens, padded, padded_key, padded_value}, scratch, out, HEAD);
}

// Queries, keys and values (tokens, 32) of one group, in `parts` parts of equal size.
void test_channel_attention(const float* query, const float* key, const float* value, int tokens, int parts, float scale,
                            float* out) {
  std::vector<float> logits(static_cast<size_t>(parts) * AFFINITY), affinity(AFFINITY);
  const int part = tokens / parts;
  for (int p = 0; p < parts; ++p) {
    const size_t first = static_cast<size_t>(p) * part * HEAD;
    channel_logits(query + first, key + first, HEAD, part, logits.data() + static_cast<size_t>(p) * AFFINITY);
  }
  channel_affinity(logits.data(), parts, AFFINITY, scale, affinity.data());
  apply_affinity(value, HEAD, affinity.data(), tokens, out, HEAD);
}

// Tokens (tokens, channels) to X^T X and a last row of their sums, (channels + 1, channels), added up in `parts` parts.
void test_gram(const float* x, int tokens, int channels, int parts, float* out) {
  const size_t size = static_cast<size_t>(channels + 1) * channels;
  std::vector<float> sums(parts * size);
  for (int p = 0; p < parts; ++p) {
    const int begin = tokens * p / parts, end = tokens * (p + 1) / parts;
    add_gram(x + static_cast<size_t>(begin) * channels, channels, end - begin, sums.data() + p * size);
  }
  for (int row = 0; row <= channels; ++row) {
    gram_row(sums.data(), parts, channels, row, out + static_cast<size_t>(row) * channels);
  }
}

// Images (B, channels, height, width) to tokens (B, H, W, C).
void test_embed(const float* pixels, int batch, int channels, int height, int width, int outputs, const float* weights,
                const float* bias, const float* norm_weight, const float* norm_bias, float* out) {
  Store store;
  const Linear convolution = pack(store, weights, bias, channels * PATCH * PATCH, outputs);
  const Map map{batch, divide_up(height, PATCH_STRIDE), divide_up(width, PATCH_STRIDE), outputs};
  std::vector<float> patches(map.tokens() * convolution.inputs);
  embed(Images{pixels, batch, channels, height, width}, map, convolution, Norm{norm_weight, norm_bias}, 0, map.tokens(),
        patches.data(), out);
}

// Tokens (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), outputs); in int8 where there are codes in place of weights, or in
// pairs.
void test_merge(const float* x, int batch, int height, int width, int channels, int outputs, int kernel,
                const float* norm_weight, const float* norm_bias, const float* weights, const int8_t* codes,
                const float* scales, const float* bias, int paired, float* out) {
  Store store;
  const int inputs = kernel * kernel * channels;
  const Merge merge{kernel, Norm{norm_weight, norm_bias},
                    codes    ? pack_codes(store, codes, scales, bias, inputs, outputs)
                    : paired ? pack_pairs(store, weights, bias, inputs, outputs, channels)
                             : pack(store, weights, bias, inputs, outputs)};
  const Map from{batch, height, width, channels}, padded = merge.padded(from);
  const Map to{batch, divide_up(height, 2), divide_up(width, 2), outputs};
  const size_t numbers = pairing_width(channels);
  std::vector<float> rows(padded.floats()), spare(channels), pairings(padded.tokens() * numbers);
  std::vector<Coding> codings(padded.tokens());
  std::vector<size_t> sources(to.tokens());
  const size_t C = channels;
  const Activations normed{rows.data(), C, reinterpret_cast<Code*>(rows.data()), C, codings.data(), pairings.data(), numbers};
  for (int row = 0; row < padded.batch * padded.height; ++row) norm_row(x, from, merge, row, normed, spare.data());
  merge_tokens(normed, padded, to, merge, all_panels(merge.convolution), 0, to.tokens(), sources.data(), out);
}

}  // extern "C"
#pragma GCC visibility pop

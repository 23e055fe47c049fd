// The kernels one by one, for tests that compare each with its module of the reference model. Not part of the engine.
#include <vector>

#include "channel_attention.hpp"
#include "embedding.hpp"
#include "model.hpp"
#include "window_attention.hpp"
#include "windows.hpp"

using namespace davit;

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

// Position encoding and norm without weight and bias, of maps (B, H, W, C): the residual stream, the normed tokens.
void test_gather_rows(const float* map, int batch, int height, int width, int channels, const float* taps,
                      const float* bias, float* out, float* y) {
  gather_rows(map, Map{batch, height, width, channels}, Position{taps, bias}, 0, batch * height, out, y);
}

// Windows [begin, end) of the same; `y` window after window, `places` as offsets into `out`.
int test_gather_windows(const float* map, int batch, int height, int width, int channels, int side, int begin, int end,
                        const float* taps, const float* bias, float* out, float* y, long* places) {
  const Windows windows{Map{batch, height, width, channels}, side};
  const size_t tokens = windows.before(end) - windows.before(begin);
  std::vector<float*> found(tokens);
  gather_windows(map, windows, Position{taps, bias}, begin, end, out, y, found.data());
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

// Tokens (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), outputs).
void test_merge(const float* x, int batch, int height, int width, int channels, int outputs, int kernel,
                const float* norm_weight, const float* norm_bias, const float* weights, const float* bias, float* out) {
  Store store;
  const Merge merge{kernel, Norm{norm_weight, norm_bias}, pack(store, weights, bias, kernel * kernel * channels, outputs)};
  const Map from{batch, height, width, channels}, padded = merge.padded(from);
  const Map to{batch, divide_up(height, 2), divide_up(width, 2), outputs};
  std::vector<float> normed(padded.floats());
  std::vector<const float*> sources(to.tokens());
  for (int row = 0; row < padded.batch * padded.height; ++row) norm_row(x, from, merge, row, normed.data());
  merge_tokens(normed.data(), padded, to, merge, all_panels(merge.convolution), 0, to.tokens(), sources.data(), out);
}

}  // extern "C"
#pragma GCC visibility pop

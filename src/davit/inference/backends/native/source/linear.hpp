// The weights of a linear layer, packed in the order in which a product reads them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "integers.hpp"
#include "memory.hpp"
#include "vectors.hpp"

namespace davit {

// Whether products take their inputs in pairs, see `paired_product.hpp`: on AMD's processors with AVX-512.
#if !defined(DAVIT_PAIRED)
#if defined(__AVX512F__) && (defined(__znver3__) || defined(__znver4__) || defined(__znver5__))
#define DAVIT_PAIRED 1
#else
#define DAVIT_PAIRED 0
#endif
#endif

// Inputs of a panel that are summed up, 48 KiB; sums of sums of so many keep more digits than one long sum.
constexpr int DEPTH_BLOCK = 256;
constexpr int PAIRED_BLOCK = 192;  // in pairs; an MLP's hidden channels computed at once are a whole number of these

// Neighbouring outputs that are computed together, one to three vectors wide.
struct Panel {
  int first;  // vector of outputs
  int width;  // vectors
};

// y = W x + b. The outputs are padded with zero weights to whole vectors and cut into panels; a panel holds, for input
// after input, the weights of its outputs: element (input, output) of a panel at `first` lies at
// first * LANES * inputs + input * width * LANES + output.
//
// A layer in int8 has codes in place of weights, W = scale of the output * code, with groups of inputs in place of inputs
// and the codes of a group side by side. A layer in pairs has weights divided by the scales of
// their output and input.
struct Linear {
  int inputs = 0;
  int outputs = 0;
  int vectors = 0;  // of outputs
  const float* weights = nullptr;
  const WeightCode* codes = nullptr;
  const float* scales = nullptr;
  const float* bias = nullptr;
  // Of a layer in pairs: its inputs are tokens of `span` channels, each cut into blocks; scales of those channels; and for
  // each block and each output, less the sum of its pairs' products.
  int span = 0;
  const float* input_scales = nullptr;
  const float* starts = nullptr;

  bool paired() const { return starts; }
  bool plain() const { return !codes && !starts; }  // rows are taken as they are
  // Three vectors each. A single one left over would starve the multipliers, so it makes two pairs of the last panel.
  int panels() const { return divide_up(vectors, 3); }
  Panel panel(int index) const {
    const int count = panels(), rest = vectors % 3;
    if (rest == 1 && count > 1 && index >= count - 2) return {vectors - 2 * (count - index), 2};
    return {3 * index, std::min(3, vectors - 3 * index)};
  }
  // The outputs of all panels before this one.
  int column(int index) const { return index < panels() ? panel(index).first * LANES : vectors * LANES; }
  const float* at(Panel panel, int input) const {
    return weights + (static_cast<size_t>(panel.first) * inputs + static_cast<size_t>(panel.width) * input) * LANES;
  }
  const float* starts_at(Panel panel, int input) const {  // the first of a block
    const size_t block = input / span * divide_up(span, PAIRED_BLOCK) + input % span / PAIRED_BLOCK;
    return starts + (block * vectors + panel.first) * LANES;
  }
  const WeightCode* codes_at(Panel panel, int input) const {  // the first of a group
    return codes +
           (static_cast<size_t>(panel.first) * round_to_groups(inputs) + static_cast<size_t>(panel.width) * input) * LANES;
  }
};

namespace detail {

// For each output, zeros for those that fill up a vector and where there are no values.
inline const float* pad_outputs(Store& store, const Linear& linear, const float* values) {
  float* padded = store.floats(static_cast<size_t>(linear.vectors) * LANES);
  for (int i = 0; i < linear.vectors * LANES; ++i) padded[i] = values && i < linear.outputs ? values[i] : 0.0f;
  return padded;
}

// Packs `weight(output, input)`.
template <class Weight>
Linear pack(Store& store, Weight weight, const float* bias, int inputs, int outputs) {
  Linear linear;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.vectors = divide_up(outputs, LANES);
  float* packed = store.floats(static_cast<size_t>(linear.vectors) * LANES * inputs);
  linear.weights = packed;
  linear.bias = pad_outputs(store, linear, bias);
  for (int i = 0; i < linear.panels(); ++i) {
    const Panel panel = linear.panel(i);
    for (int input = 0; input < inputs; ++input) {
      for (int lane = 0; lane < panel.width * LANES; ++lane) {
        const int output = panel.first * LANES + lane;
        *packed++ = output < outputs ? weight(output, input) : 0.0f;
      }
    }
  }
  return linear;
}

}  // namespace detail

// Pack weights (outputs, inputs) and a bias, or zeros for none.
inline Linear pack(Store& store, const float* weights, const float* bias, int inputs, int outputs) {
  const auto weight = [&](int output, int input) { return weights[static_cast<size_t>(output) * inputs + input]; };
  return detail::pack(store, weight, bias, inputs, outputs);
}

// The power of two nearest to the root of a mean square, zero for zero.
inline float power_of_two(float mean_square) {
  if (!(mean_square > 0.0f)) return mean_square == 0.0f ? 0.0f : 1.0f;  // one for no number
  uint32_t bits;
  std::memcpy(&bits, &mean_square, sizeof bits);
  const uint32_t exponent = (bits >> 23) + 127 + 1;  // twice the offset
  bits = exponent / 2 << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}

// The same in pairs, with given scales of the inputs or with none; `span` is a multiple of 32.
inline Linear pack_pairs(Store& store, const float* weights, const float* bias, int inputs, int outputs, int span,
                         const float* input_scales = nullptr) {
  const auto row_of = [&](int output) { return weights + static_cast<size_t>(output) * inputs; };
  const auto one_over = [](float scale) { return scale == 0.0f ? 1.0f : 1.0f / scale; };
  std::vector<float> along_inputs(inputs, 1.0f), along_outputs(outputs), scales(outputs);  // factors of the weights
  const auto scale_of = [&](int output) {
    Vec squares{};
    for (int i = 0; i < inputs; i += LANES) {
      const Vec x = load(row_of(output) + i) * load(along_inputs.data() + i);
      squares += x * x;
    }
    return power_of_two(sum(squares) / inputs);
  };
  if (!input_scales) {
    float* own = store.floats(span);
    std::fill_n(own, span, 0.0f);
    for (int output = 0; output < outputs; ++output) {
      const Vec factor = fill(one_over(scale_of(output)));  // so that all outputs count as much
      for (int i = 0; i < inputs; i += LANES) {
        const Vec x = load(row_of(output) + i) * factor;
        davit::store(own + i % span, load(own + i % span) + x * x);
      }
    }
    for (int i = 0; i < span; ++i) own[i] = power_of_two(own[i] / outputs * span / inputs);
    input_scales = own;
  }
  for (int i = 0; i < inputs; ++i) along_inputs[i] = one_over(input_scales[i % span]);
  for (int i = 0; i < outputs; ++i) along_outputs[i] = one_over(scales[i] = scale_of(i));
  Linear linear = detail::pack(
      store, [&](int output, int input) { return row_of(output)[input] * along_inputs[input] * along_outputs[output]; },
      bias, inputs, outputs);
  const size_t width = static_cast<size_t>(linear.vectors) * LANES;
  float* starts = store.floats(width * (inputs / span) * divide_up(span, PAIRED_BLOCK));
  linear.span = span;
  linear.scales = detail::pad_outputs(store, linear, scales.data());
  linear.input_scales = input_scales;
  linear.starts = starts;
  for (int k = 0; k < inputs; starts += width) {
    const int end = std::min(k + PAIRED_BLOCK, (k / span + 1) * span);
    std::fill_n(starts, width, 0.0f);
    for (int output = 0; output < outputs; ++output) {
      const auto weight = [&](int i) { return static_cast<double>(row_of(output)[i] * along_inputs[i]); };
      double pairs = 0.0;
      for (int i = k; i < end; i += 4) pairs += weight(i + 2) * weight(i + 3) - weight(i) * weight(i + 1);
      starts[output] = static_cast<float>(pairs) * along_outputs[output] * along_outputs[output];
    }
    k = end;
  }
  return linear;
}

// The same of codes (outputs, inputs) between -127 and 127, a scale for each output, and a bias.
inline Linear pack_codes(Store& store, const int8_t* codes, const float* scales, const float* bias, int inputs,
                         int outputs) {
  Linear linear;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.vectors = divide_up(outputs, LANES);
  const size_t bytes = static_cast<size_t>(linear.vectors) * LANES * round_to_groups(inputs) * sizeof(WeightCode);
  WeightCode* packed = reinterpret_cast<WeightCode*>(store.floats(bytes / sizeof(float)));
  linear.codes = packed;
  linear.scales = detail::pad_outputs(store, linear, scales);
  linear.bias = detail::pad_outputs(store, linear, bias);
  for (int i = 0; i < linear.panels(); ++i) {
    const Panel panel = linear.panel(i);
    for (int group = 0; group < inputs; group += GROUP) {
      for (int lane = 0; lane < panel.width * LANES; ++lane) {
        const int output = panel.first * LANES + lane;
        for (int input = group; input < group + GROUP; ++input) {
          const bool inside = output < outputs && input < inputs;
          const int code = inside ? codes[static_cast<size_t>(output) * inputs + input] : 0;
          *packed++ = static_cast<WeightCode>(code + WEIGHT_ZERO);
        }
      }
    }
  }
  return linear;
}

}  // namespace davit

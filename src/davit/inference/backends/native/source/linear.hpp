// The weights of a linear layer, packed in the order in which a product reads them.
#pragma once

#include <algorithm>

#include "integers.hpp"
#include "memory.hpp"
#include "vectors.hpp"

namespace davit {

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
// and the codes of a group side by side.
struct Linear {
  int inputs = 0;
  int outputs = 0;
  int vectors = 0;  // of outputs
  const float* weights = nullptr;
  const WeightCode* codes = nullptr;
  const float* scales = nullptr;
  const float* bias = nullptr;

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

}  // namespace detail

// Pack weights (outputs, inputs) and a bias, or zeros for none.
inline Linear pack(Store& store, const float* weights, const float* bias, int inputs, int outputs) {
  Linear linear;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.vectors = divide_up(outputs, LANES);
  float* packed = store.floats(static_cast<size_t>(linear.vectors) * LANES * inputs);
  linear.weights = packed;
  linear.bias = detail::pad_outputs(store, linear, bias);
  for (int i = 0; i < linear.panels(); ++i) {
    const Panel panel = linear.panel(i);
    for (int input = 0; input < inputs; ++input) {
      for (int lane = 0; lane < panel.width * LANES; ++lane) {
        const int output = panel.first * LANES + lane;
        *packed++ = output < outputs ? weights[static_cast<size_t>(output) * inputs + input] : 0.0f;
      }
    }
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

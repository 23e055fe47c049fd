// The weights of a linear layer, packed in the order in which a product reads them.
#pragma once

#include <algorithm>

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
struct Linear {
  int inputs = 0;
  int outputs = 0;
  int vectors = 0;  // of outputs
  const float* weights = nullptr;
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
};

// Pack weights (outputs, inputs) and a bias, or zeros for none.
inline Linear pack(Store& store, const float* weights, const float* bias, int inputs, int outputs) {
  Linear linear;
  linear.inputs = inputs;
  linear.outputs = outputs;
  linear.vectors = divide_up(outputs, LANES);
  float* packed = store.floats(static_cast<size_t>(linear.vectors) * LANES * inputs);
  float* padded = store.floats(static_cast<size_t>(linear.vectors) * LANES);
  linear.weights = packed;
  linear.bias = padded;
  for (int i = 0; i < linear.panels(); ++i) {
    const Panel panel = linear.panel(i);
    for (int input = 0; input < inputs; ++input) {
      for (int lane = 0; lane < panel.width * LANES; ++lane) {
        const int output = panel.first * LANES + lane;
        *packed++ = output < outputs ? weights[static_cast<size_t>(output) * inputs + input] : 0.0f;
      }
    }
  }
  for (int i = 0; i < linear.vectors * LANES; ++i) padded[i] = bias && i < outputs ? bias[i] : 0.0f;
  return linear;
}

}  // namespace davit

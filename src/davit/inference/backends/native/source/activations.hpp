// What goes into a linear layer: rows of floats, with what belongs to them where its products take pairs, or of codes where
// it is in int8.
#pragma once

#include "coded_product.hpp"
#include "paired_product.hpp"
#include "product.hpp"

namespace davit {

struct Activations {
  float* rows = nullptr;
  size_t stride = 0;
  Code* codes = nullptr;
  size_t code_stride = 0;
  Coding* codings = nullptr;
  float* pairings = nullptr;
  size_t pairing_stride = 0;

  Activations from(size_t row) const {
    return {rows + row * stride, stride, codes ? codes + row * code_stride : nullptr, code_stride,
            codings ? codings + row : nullptr, pairings ? pairings + row * pairing_stride : nullptr, pairing_stride};
  }
  Code* codes_of(size_t row) const { return codes + row * code_stride; }
  CodedRow coded(size_t row) const { return {codes_of(row), codings[row]}; }

  // A token, normed, as a layer wants it.
  void norm(const Linear& layer, const float* token, size_t row) const {
    if (layer.codes) {
      codings[row] = code_normalised(token, layer.inputs, codes_of(row));
    } else {
      normalise(token, layer.inputs, rows + row * stride);
      if (layer.paired()) pair(layer, all_inputs(layer), row);
    }
  }
  // Rows of floats, as a layer wants them.
  void prepare(const Linear& layer, size_t begin, size_t end) const {
    for (size_t row = begin; layer.codes && row < end; ++row) {
      codings[row] = code_row(rows + row * stride, layer.inputs, codes_of(row));
    }
    for (size_t row = begin; layer.paired() && row < end; ++row) pair(layer, all_inputs(layer), row);
  }
  void pair(const Linear& layer, Range inputs, size_t row) const {
    pair_row(rows + row * stride, inputs.end - inputs.begin, layer.input_scales + inputs.begin,
             pairings + row * pairing_stride);
  }
};

// By the kind of the layer.
template <class Out>
void multiply(const Linear& linear, Range panels, Range inputs, const Activations& in, int rows, Finish finish, Out out) {
  if (linear.codes) {
    multiply_codes(linear, panels, inputs, [&](int row) { return in.coded(row); }, rows, finish, out);
  } else if (linear.paired()) {
    multiply_pairs(linear, panels, inputs, ConstRows{in.rows, in.stride}, ConstRows{in.pairings, in.pairing_stride}, rows,
                   finish, out);
  } else {
    multiply(linear, panels, inputs, ConstRows{in.rows, in.stride}, rows, finish, out);
  }
}

}  // namespace davit

// The architecture and its packed weights. Read-only once made, so that every thread may use them.
#pragma once

#include <stdexcept>
#include <vector>

#include "embedding.hpp"
#include "linear.hpp"
#include "norm.hpp"
#include "position.hpp"

namespace davit {

constexpr int STAGES = 4;

struct Block {
  bool channel = false;  // channel attention, else window attention
  Position attention_position;
  // Window attention takes query, key and value as one layer; channel attention keeps the values of the whole map and
  // takes them apart: query and key, and value.
  Linear qkv;
  Linear value;
  Linear projection;
  const float* padded_key_value = nullptr;  // key and value of padded tokens, 2 C
  bool mlp = false;
  Position mlp_position;
  Linear fc1;
  Linear fc2;
};

struct Stage {
  int width = 0;
  Merge merge;  // not in the first stage
  std::vector<Block> blocks;
  Norm map_norm;  // of the map as it goes out; without weights it goes out as it is
};

struct Model {
  int in_channels = 0;
  int window = 0;
  bool scale_by_tokens = false;
  Linear patch;
  Norm patch_norm;
  Stage stages[STAGES];
  Linear head;  // without outputs where the model gives maps
  Store store;
};

// Reads numbers and tensors in the order in which `weights.py` lists them.
class Reader {
 public:
  Reader(const int* numbers, int count, const float* const* tensors, int tensor_count)
      : numbers_(numbers), numbers_left_(count), tensors_(tensors), tensors_left_(tensor_count) {}
  int number() {
    if (numbers_left_-- < 1) throw std::invalid_argument("too few numbers");
    return *numbers_++;
  }
  const float* tensor() {
    if (tensors_left_-- < 1) throw std::invalid_argument("too few tensors");
    return *tensors_++;
  }
  void finish() const {
    if (numbers_left_ || tensors_left_) throw std::invalid_argument("too many numbers or tensors");
  }

 private:
  const int* numbers_;
  int numbers_left_;
  const float* const* tensors_;
  int tensors_left_;
};

namespace detail {

inline Linear read_linear(Reader& reader, Store& store, int inputs, int outputs) {
  const float* weights = reader.tensor();
  return pack(store, weights, reader.tensor(), inputs, outputs);
}

inline Norm read_norm(Reader& reader, Store& store, int width) {
  const float* weight = store.copy(reader.tensor(), width);
  return {weight, store.copy(reader.tensor(), width)};
}

inline Position read_position(Reader& reader, Store& store, int width) {
  const float* weights = store.copy(reader.tensor(), static_cast<size_t>(9) * width);
  return {weights, store.copy(reader.tensor(), width)};
}

}  // namespace detail

// A block of `width` channels; `hidden` is the width inside its MLP, zero for none.
inline Block read_block(Reader& reader, Store& store, int width, bool channel, bool position, int hidden) {
  Block block;
  block.channel = channel;
  if (position) block.attention_position = detail::read_position(reader, store, width);
  if (channel) {
    block.qkv = detail::read_linear(reader, store, width, 2 * width);
    block.value = detail::read_linear(reader, store, width, width);
  } else {
    block.qkv = detail::read_linear(reader, store, width, 3 * width);
    block.padded_key_value = store.copy(reader.tensor(), static_cast<size_t>(2) * width);
  }
  block.projection = detail::read_linear(reader, store, width, width);
  block.mlp = hidden > 0;
  if (!block.mlp) return block;
  if (position) block.mlp_position = detail::read_position(reader, store, width);
  block.fc1 = detail::read_linear(reader, store, width, hidden);
  block.fc2 = detail::read_linear(reader, store, hidden, width);
  return block;
}

// Numbers: in_channels, merge kernel, window, scale by tokens, position convolutions, norms on the maps, classes (zero
// for maps), attentions of a dual block, a one for each that is channel attention; then width, depth and hidden width of
// each stage.
inline void read_model(Reader& reader, Model& model) {
  model.in_channels = reader.number();
  const int kernel = reader.number();
  model.window = reader.number();
  model.scale_by_tokens = reader.number() != 0;
  const bool position = reader.number() != 0, map_norms = reader.number() != 0;
  const int classes = reader.number();
  std::vector<bool> channel(reader.number());
  for (size_t i = 0; i < channel.size(); ++i) channel[i] = reader.number() != 0;
  Store& store = model.store;
  int below = 0;
  for (int s = 0; s < STAGES; ++s) {
    Stage& stage = model.stages[s];
    const int width = stage.width = reader.number(), depth = reader.number(), hidden = reader.number();
    if (width < HEAD || width % HEAD) throw std::invalid_argument("a width is no multiple of 32");
    if (s == 0) {
      model.patch = detail::read_linear(reader, store, model.in_channels * PATCH * PATCH, width);
      model.patch_norm = detail::read_norm(reader, store, width);
    } else {
      stage.merge.kernel = kernel;
      stage.merge.norm = detail::read_norm(reader, store, below);
      stage.merge.convolution = detail::read_linear(reader, store, kernel * kernel * below, width);
    }
    for (int d = 0; d < depth; ++d) {
      for (const bool is_channel : channel) {
        stage.blocks.push_back(read_block(reader, store, width, is_channel, position, hidden));
      }
    }
    if (map_norms) stage.map_norm = detail::read_norm(reader, store, width);
    below = width;
  }
  if (classes) model.head = detail::read_linear(reader, store, below, classes);
  reader.finish();
}

}  // namespace davit

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

  // The Gram matrix may take the place of its products, which are not in int8.
  bool gram() const { return channel && !qkv.codes && !projection.codes; }
};

struct Stage {
  int width = 0;
  Merge merge;  // not in the first stage
  std::vector<Block> blocks;
  bool coded = false;  // some layers of the blocks are in int8
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

// Gives the tensor of that number, null where it cannot. It stays until three more were asked for: so they need not all be
// in memory beside what is packed of them.
using Give = const void* (*)(int);

// Reads numbers and tensors in the order in which `weights.py` lists them.
class Reader {
 public:
  Reader(const int* numbers, int count, Give give, int tensor_count)
      : numbers_(numbers), numbers_left_(count), give_(give), tensors_(tensor_count) {}
  int number() {
    if (numbers_left_-- < 1) throw std::invalid_argument("too few numbers");
    return *numbers_++;
  }
  const float* tensor() { return static_cast<const float*>(next()); }
  const int8_t* codes() { return static_cast<const int8_t*>(next()); }
  void finish() const {
    if (numbers_left_ || given_ < tensors_) throw std::invalid_argument("too many numbers or tensors");
  }

 private:
  const void* next() {
    if (given_ >= tensors_) throw std::invalid_argument("too few tensors");
    const void* found = give_(given_++);
    if (!found) throw std::invalid_argument("a tensor could not be read");
    return found;
  }
  const int* numbers_;
  int numbers_left_;
  Give give_;
  int tensors_;
  int given_ = 0;
};

namespace detail {

inline Linear read_linear(Reader& reader, Store& store, int inputs, int outputs) {
  const float* weights = reader.tensor();
  return pack(store, weights, reader.tensor(), inputs, outputs);
}

// Codes, scales and bias with `coded`.
inline Linear read_linear(Reader& reader, Store& store, int inputs, int outputs, bool coded) {
  if (!coded) return read_linear(reader, store, inputs, outputs);
  if (inputs > MOST_CODED) throw std::invalid_argument("a layer has too many inputs for int8");
  const int8_t* codes = reader.codes();
  const float* scales = reader.tensor();
  return pack_codes(store, codes, scales, reader.tensor(), inputs, outputs);
}

// In pairs where the processor likes that, unless it is in int8; of tokens of `span` channels, or of one.
inline Linear read_layer(Reader& reader, Store& store, int inputs, int outputs, bool coded, int span,
                         const float* input_scales = nullptr) {
  if (coded || !DAVIT_PAIRED || span % 32) return read_linear(reader, store, inputs, outputs, coded);
  const float* weights = reader.tensor();
  return pack_pairs(store, weights, reader.tensor(), inputs, outputs, span, input_scales);
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

// A block of `width` channels; `hidden` is the width inside its MLP, zero for none. A number for each of its layers (query,
// key and value together; projection; those of the MLP) is one for int8.
inline Block read_block(Reader& reader, Store& store, int width, bool channel, bool position, int hidden) {
  Block block;
  block.channel = channel;
  if (position) block.attention_position = detail::read_position(reader, store, width);
  const bool coded_qkv = reader.number(), coded_projection = reader.number();
  if (channel) {
    block.qkv = detail::read_layer(reader, store, width, 2 * width, coded_qkv, width);
    block.value = detail::read_layer(reader, store, width, width, coded_qkv, width, block.qkv.input_scales);
  } else {
    block.qkv = detail::read_layer(reader, store, width, 3 * width, coded_qkv, width);
    block.padded_key_value = store.copy(reader.tensor(), static_cast<size_t>(2) * width);
  }
  block.projection = detail::read_layer(reader, store, width, width, coded_projection, width);
  block.mlp = hidden > 0;
  if (!block.mlp) return block;
  if (position) block.mlp_position = detail::read_position(reader, store, width);
  const bool coded_fc1 = reader.number(), coded_fc2 = reader.number();
  block.fc1 = detail::read_layer(reader, store, width, hidden, coded_fc1, width);
  block.fc2 = detail::read_layer(reader, store, hidden, width, coded_fc2, hidden);
  return block;
}

// Numbers: in_channels, merge kernel, window, scale by tokens, position convolutions, norms on the maps, classes (zero
// for maps), attentions of a dual block, a one for each that is channel attention; then for each stage width, depth and
// hidden width, from the second on whether its merge is in int8, and what `read_block` reads.
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
      const int inputs = kernel * kernel * below;
      stage.merge.convolution = detail::read_layer(reader, store, inputs, width, reader.number(), below);
    }
    for (int d = 0; d < depth; ++d) {
      for (const bool is_channel : channel) {
        const Block block = read_block(reader, store, width, is_channel, position, hidden);
        stage.coded |= block.qkv.codes || block.projection.codes || block.fc1.codes || block.fc2.codes;
        stage.blocks.push_back(block);
      }
    }
    if (map_norms) stage.map_norm = detail::read_norm(reader, store, width);
    below = width;
  }
  if (classes) model.head = detail::read_linear(reader, store, below, classes);
  reader.finish();
}

}  // namespace davit

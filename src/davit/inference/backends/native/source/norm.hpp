// LayerNorm of a token.
#pragma once

#include <cmath>

#include "vectors.hpp"

namespace davit {

constexpr float NORM_EPS = 1e-5f;

struct Norm {
  const float* weight = nullptr;
  const float* bias = nullptr;
};

struct Moments {
  Vec mean;
  Vec scale;  // one over the standard deviation
};

inline Moments moments(const float* x, int channels) {
  Vec total{}, squares{};
  for (int c = 0; c < channels; c += LANES) total += load(x + c);
  const Vec mean = fill(sum(total) / static_cast<float>(channels));
  for (int c = 0; c < channels; c += LANES) {
    const Vec centred = load(x + c) - mean;
    squares += centred * centred;
  }
  return {mean, fill(1.0f / std::sqrt(sum(squares) / static_cast<float>(channels) + NORM_EPS))};
}

// Without weight and bias: those are folded into the linear layer behind. `y` may be `x`.
inline void normalise(const float* x, int channels, float* y) {
  const Moments m = moments(x, channels);
  for (int c = 0; c < channels; c += LANES) store(y + c, (load(x + c) - m.mean) * m.scale);
}

inline void normalise(const float* x, int channels, Norm norm, float* y) {
  const Moments m = moments(x, channels);
  for (int c = 0; c < channels; c += LANES) {
    store(y + c, (load(x + c) - m.mean) * m.scale * load(norm.weight + c) + load(norm.bias + c));
  }
}

}  // namespace davit

// exp and GELU of vectors, by polynomials.
#pragma once

#include <cstring>

#include "vectors.hpp"

namespace davit {

inline Vec as_floats(IntVec x) { return reinterpret_cast<Vec>(x); }
inline IntVec as_ints(Vec x) { return reinterpret_cast<IntVec>(x); }

// exp(x) for x up to 0, as softmax needs it; relative error 2e-7, NaN stays NaN, what is under exp(-87) becomes exp(-87).
inline Vec exp_negative(Vec x) {
  x = at_least(x, fill(-87.0f));
  // Adding this rounds to a whole number, which then stands in the lowest bits.
  const Vec magic = fill(12582912.0f);
  const Vec shifted = x * fill(1.44269504f) + magic;
  const Vec n = shifted - magic;
  // x - n log(2), with log(2) in two parts so that the first product is exact.
  Vec r = x - n * fill(0.693145751953125f);
  r = r - n * fill(1.42860677e-6f);
  Vec p = fill(1.3888889e-3f);
  p = p * r + fill(8.3333333e-3f);
  p = p * r + fill(4.1666667e-2f);
  p = p * r + fill(1.6666667e-1f);
  p = p * r + fill(0.5f);
  p = p * r + fill(1.0f);
  p = p * r + fill(1.0f);
  const Vec power = as_floats((as_ints(shifted) + fill(127)) << 23);
  return p * power;
}

// x Phi(x), the exact GELU. Phi(x) = 1/2 + x p(u) with u = 2 x^2 / 5.3^2 - 1 and p fitted to |x| <= 5.3 (weighted least
// squares on Chebyshev polynomials); beyond, the straight line leaves [0, 1] and is cut. Error under 8e-7 for |x| < 12
// and 7e-8 rms for |x| < 3; PyTorch's are up to 1.1e-6 and 1.1e-7, by processor.
inline Vec gelu(Vec x) {
  constexpr float P[] = {0.13339256f,   -0.06651848f,   0.04926406f,   -0.039589856f,   0.03208169f,
                         -0.025289444f, 0.018909412f,   -0.013221115f, 0.008885737f,    -0.0057808296f,
                         0.0030336375f, -0.0011587841f, 0.000818884f,  -0.000742693f,   0.0002548343f};
  constexpr int DEGREE = sizeof(P) / sizeof(P[0]) - 1;
  constexpr float LIMIT = 5.3f * 5.3f;
  const Vec u = at_most(x * x, fill(LIMIT)) * fill(2.0f / LIMIT) - fill(1.0f);
  Vec p = fill(P[DEGREE]);
#pragma GCC unroll 16
  for (int i = DEGREE - 1; i >= 0; --i) p = p * u + fill(P[i]);
  Vec phi = x * p + fill(0.5f);
  phi = at_most(at_least(phi, fill(0.0f)), fill(1.0f));
  return x * phi;
}

// The same with an error under 2e-4: enough where the result becomes one of 255 codes.
inline Vec coarse_gelu(Vec x) {
  constexpr float P[] = {0.17597021f,  -0.0844266f,   0.055410154f, -0.035462476f,
                         0.02409124f, -0.016550738f, 0.0059718331f};
  constexpr int DEGREE = sizeof(P) / sizeof(P[0]) - 1;
  constexpr float LIMIT = 4.0f * 4.0f;
  const Vec u = at_most(x * x, fill(LIMIT)) * fill(2.0f / LIMIT) - fill(1.0f);
  Vec p = fill(P[DEGREE]);
#pragma GCC unroll 8
  for (int i = DEGREE - 1; i >= 0; --i) p = p * u + fill(P[i]);
  Vec phi = x * p + fill(0.5f);
  phi = at_most(at_least(phi, fill(0.0f)), fill(1.0f));
  return x * phi;
}

}  // namespace davit

// The weighted binary cross-entropy of one logit f, and its derivative:
//   loss = signal_weight softplus(-f) + noise_weight softplus(f)
//   d loss / d f = noise_weight sigmoid(f) - signal_weight sigmoid(-f)
// Both need one exponential, of -|f|, so nothing overflows at any f.
#pragma once

#include <cmath>

#include "numerics/host_device.h"

namespace ggm {

// A weight of 0 switches its term off, also where that term is infinite (f = +-inf).
GGM_HD float weighted(float weight, float value) { return weight == 0.0f ? 0.0f : weight * value; }

GGM_HD float candidate_loss(float f, float signal_weight, float noise_weight) {
  const float both = log1pf(expf(-fabsf(f)));
  return weighted(signal_weight, fmaxf(-f, 0.0f) + both) + weighted(noise_weight, fmaxf(f, 0.0f) + both);
}

GGM_HD float candidate_loss_derivative(float f, float signal_weight, float noise_weight) {
  const float e = expf(-fabsf(f));
  const float of_larger = 1.0f / (1.0f + e);  // sigmoid(|f|)
  const float of_smaller = e * of_larger;     // sigmoid(-|f|)
  const float of_f = f < 0.0f ? of_smaller : of_larger;
  const float of_minus_f = f < 0.0f ? of_larger : of_smaller;
  return noise_weight * of_f - signal_weight * of_minus_f;
}

}  // namespace ggm

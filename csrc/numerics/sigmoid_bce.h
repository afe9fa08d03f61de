// The weighted binary cross-entropy of one logit f, and its derivative:
//   loss = signal_weight softplus(-f) + noise_weight softplus(f)
//   d loss / d f = noise_weight sigmoid(f) - signal_weight sigmoid(-f)
// Both need one exponential, of -|f|, so nothing overflows at any f.
#pragma once

#include <cmath>

#include "numerics/host_device.h"

namespace ggm {

// A weight of 0 switches its term off, also where that term is infinite (f = +-inf).
template <class Real>
GGM_HD Real weighted(Real weight, Real value) {
  return weight == 0.0f ? Real{} : weight * value;
}

// Real is float, or many of them. log1p_exp is log1p(exp(-|f|)), what both softplus have in common.
template <class Real>
GGM_HD Real loss_of(Real f, Real log1p_exp, Real signal_weight, Real noise_weight) {
  const Real of_minus_f = (f < 0.0f ? -f : Real{}) + log1p_exp, of_f = (f > 0.0f ? f : Real{}) + log1p_exp;
  return weighted(signal_weight, of_minus_f) + weighted(noise_weight, of_f);
}

// Its derivative, from exponential = exp(-|f|).
template <class Real>
GGM_HD Real derivative_of(Real f, Real exponential, Real signal_weight, Real noise_weight) {
  const Real of_larger = 1.0f / (1.0f + exponential);  // sigmoid(|f|)
  const Real of_smaller = exponential * of_larger;     // sigmoid(-|f|)
  const Real of_f = f < 0.0f ? of_smaller : of_larger, of_minus_f = f < 0.0f ? of_larger : of_smaller;
  return noise_weight * of_f - signal_weight * of_minus_f;
}

GGM_HD float candidate_loss(float f, float signal_weight, float noise_weight) {
  return loss_of(f, log1pf(expf(-fabsf(f))), signal_weight, noise_weight);
}

GGM_HD float candidate_loss_derivative(float f, float signal_weight, float noise_weight) {
  return derivative_of(f, expf(-fabsf(f)), signal_weight, noise_weight);
}

}  // namespace ggm

// Softmax cross-entropy of one row, from parts that a tile of its logits can give:
//   log-sum-exp = top + log mass,  mass = sum exp(logit - top)
//   loss = (top - target_logit) + log mass
//   d loss / d logit = softmax_scale exp((logit - top) - log mass) - target_scale [is target]
// Top and log mass stay apart: their sum would round away what a large logit leaves of the loss.
#pragma once

#include <cmath>

#include "numerics/host_device.h"

namespace ggm {

// Slope of softcap tanh(x / softcap), from its value.
template <class Real>
GGM_HD Real softcap_slope(Real capped, float softcap) {
  const Real share = capped / softcap;
  return 1.0f - share * share;
}

GGM_HD float capped(float logit, float softcap) { return softcap > 0.0f ? softcap * tanhf(logit / softcap) : logit; }

}  // namespace ggm
